package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// loadTick is how often Load writes: rates are kept by writing more at each tick, not by ticking faster, since every
// wake-up costs an emulated guest dearly.
const loadTick = 2 * time.Millisecond

// Load dirties memory: it fills some with numbers that do not compress, says so by making a file, and then goes on
// writing to pages of it at random, at a rate, until ctx ends. It is what benchmarks snapshot.
func Load(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	size := flags.Int("mib", 64, "MiB of memory to fill")
	rate := flags.Int("rate", 0, "MiB of pages to write a second afterwards, at random; 0 is none")
	ready := flags.String("ready", "", "file to make once the memory is filled")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *size <= 0 || *rate < 0 {
		return errors.New("-mib must be positive and -rate not negative")
	}
	memory, err := unix.Mmap(-1, 0, *size<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(memory) //nolint:errcheck // the process ends
	x := uint64(88172645463325252)
	for at := 0; at < len(memory); at += 8 {
		x = xorshift(x)
		binary.LittleEndian.PutUint64(memory[at:], x)
	}
	if *ready != "" {
		if err := os.WriteFile(*ready, nil, 0o644); err != nil { // nothing in it
			return err
		}
	}
	if *rate == 0 {
		<-ctx.Done()
		return nil
	}
	return dirty(ctx, memory, *rate)
}

// dirty writes eight bytes to pages taken at random, so many a tick that the pages add up to the rate.
func dirty(ctx context.Context, memory []byte, rate int) error {
	const page = 4096
	perTick := float64(rate<<20) / page * loadTick.Seconds()
	pages := uint64(len(memory) / page)
	tick := time.NewTicker(loadTick)
	defer tick.Stop()
	x, due, last := uint64(2463534242), 0.0, time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			// After a standstill the backlog is dropped: a burst would not be the rate that was asked for.
			due += min(now.Sub(last).Seconds()/loadTick.Seconds(), 10) * perTick
			last = now
		}
		for ; due >= 1; due-- {
			x = xorshift(x)
			binary.LittleEndian.PutUint64(memory[x%pages*page:], x)
		}
	}
}

func xorshift(x uint64) uint64 {
	x ^= x << 13
	x ^= x >> 7
	return x ^ x<<17
}
