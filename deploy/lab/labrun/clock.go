//go:build linux && amd64

package main

import (
	"fmt"
	"time"
)

// kernelHZ is how often the timer of Debian's kernels ticks each second; loops per jiffy follow from it.
const kernelHZ = 250

// clockWords tell a kernel in the lab what it would otherwise measure. Measuring goes wrong when the emulator is not
// scheduled meanwhile: the machine's clock then runs at some other speed for good, and every deadline in it with it
// (twice as fast was seen). Emulation passes this machine's TSC through, so its frequency holds at every depth.
func clockWords(khz uint64) string {
	return fmt.Sprintf("tsc=reliable no_timer_check tsc_early_khz=%d lpj=%d", khz, khz*1000/kernelHZ)
}

// guestWords are for the kernel of a guest that a VMM runs inside the machine. Emulated twice over, it is also spared
// relocating itself and working around faults that the emulated processor does not have.
func guestWords(khz uint64) string { return "nokaslr mitigations=off " + clockWords(khz) }

// tscKHz measures the frequency of the time stamp counter, in kHz. No file tells it everywhere: "cpu MHz" in
// /proc/cpuinfo is another frequency on machines that change the speed of their cores.
func tscKHz() uint64 {
	const span = 100 * time.Millisecond
	ticks0, time0 := sample()
	time.Sleep(span)
	ticks1, time1 := sample()
	return (ticks1 - ticks0) * uint64(time.Millisecond) / uint64(time1.Sub(time0))
}

// sample reads both clocks at one instant, as well as that goes: the best of some tries, since each may be interrupted.
func sample() (ticks uint64, at time.Time) {
	best := ^uint64(0)
	for range 20 {
		before := rdtsc()
		now := time.Now()
		if took := rdtsc() - before; took < best {
			best, ticks, at = took, before+took/2, now
		}
	}
	return ticks, at
}

// rdtsc reads the time stamp counter.
func rdtsc() uint64
