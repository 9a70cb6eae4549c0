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

# Words for the command line of a guest's kernel, which in the lab is emulated twice over. They spare it what it does
# slowly or measures wrongly there: relocating itself, working around faults that the emulated processor does not have,
# and measuring the clock while the machine above it is not scheduled.
guest_kernel_arguments() {
  local khz
  khz=$(awk -F: '/^cpu MHz/ { printf "%d", $2 * 1000; exit }' /proc/cpuinfo)
  printf 'nokaslr mitigations=off no_timer_check tsc=reliable tsc_early_khz=%d lpj=%d\n' "$khz" $((khz * 4))
}
