"""What a user does: values in, values out, nothing printed."""
