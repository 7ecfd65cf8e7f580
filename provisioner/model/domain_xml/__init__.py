"""A machine to libvirt's domain XML, and back. The only importer of lxml; XML is built from nodes, never from strings.

Elements are those of https://libvirt.org/formatdomain.html. Reading and writing are apart, so that commands that
only look do not pay for the writer's imports.
"""
