"""The lab's Proxmox host: an API and an ``/etc/pve`` as Proxmox VE has them, with real LXC containers behind."""
