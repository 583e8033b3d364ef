# shellcheck shell=bash
# Stops when the vm id belongs to somebody else. Proxmox's provider would take such a container over without a word,
# and destroy it later. Variables: vm_id, owner_tag (the tag every container of this stack carries), machine_name.
: "${vm_id:?}" "${owner_tag:?}" "${machine_name:?}"
for file in /etc/pve/lxc/"$vm_id".conf /etc/pve/qemu-server/"$vm_id".conf \
    /etc/pve/nodes/*/lxc/"$vm_id".conf /etc/pve/nodes/*/qemu-server/"$vm_id".conf; do
    [[ -e $file ]] || continue
    current=$(sed '/^\[/,$d' "$file")
    name=$(sed -n 's/^\(hostname\|name\): *//p' <<<"$current" | head -n 1)
    tags=$(sed -n 's/^tags: *//p' <<<"$current" | tr ';, ' '\n')
    if grep -qxF "$owner_tag" <<<"$tags" && [[ $name == "$machine_name" ]]; then
        continue
    fi
    fail "vm id $vm_id is taken by '$name' ($file), which this stack did not make. Choose a free machines[].vmId for $machine_name, or remove '$name' in Proxmox if nobody needs it. Nothing was changed."
done
