# shellcheck shell=bash
# What the lab's scripts share; to be sourced.

# The Cloud Hypervisor binary that goes into the machine.
find_cloud_hypervisor() {
  local found=${STILLFRAME_LAB_CH:-$(command -v cloud-hypervisor || true)}
  if [[ ! -x $found ]]; then
    printf 'lab: no Cloud Hypervisor: set STILLFRAME_LAB_CH to its binary\n' >&2
    return 1
  fi
  printf '%s\n' "$found"
}

# The folder that make setup fills with the guest's kernel, initramfs and templates.
find_images() {
  local images=${STILLFRAME_IMAGES:-$1/build/images}
  if [[ ! -e $images/vmlinuz ]]; then
    printf 'lab: %s has no guest kernel: run make setup\n' "$images" >&2
    return 1
  fi
  printf '%s\n' "$images"
}
