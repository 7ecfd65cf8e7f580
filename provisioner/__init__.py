"""macvm: KVM virtual machines straight on the LAN with macvtap, reachable from their own host."""
