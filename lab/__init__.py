"""A classroom on one machine: what surrounds the program in a school, made of local parts.

The lab offers the Proxmox interface, machines, an image registry, a package proxy and artefacts that the
program expects from a school's network. The program itself never imports this package.
"""
