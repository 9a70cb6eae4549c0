package store

import "context"

// compareAhead copies the file while the guest runs; in the pause it reads both files again and copies what differs.
// The pause still grows with the file, by the time it takes to read it twice from memory, but not by the time to write
// it.
//
// Why nothing is missed: in the pause every byte that is not in a hole of the source is compared with the copy, and
// every hole of the source becomes one. What was copied before only saves writing.
type compareAhead struct{ *Capture }

func (w *compareAhead) begin(ctx context.Context) (Stats, error) {
	total, err := w.copyBase(ctx)
	if err != nil {
		return total, err
	}
	stats, err := w.files.sweep(ctx, w.src, w.dst, w.size)
	return added(total, stats), err
}

func (w *compareAhead) freeze(ctx context.Context) (Stats, error) {
	return w.files.sweep(ctx, w.src, w.dst, w.size)
}

// copyBase makes the first copy and gets it out of the way of later writes: a copy full of dirty pages would make them
// wait for the disk.
func (c *Capture) copyBase(ctx context.Context) (Stats, error) {
	stats, err := c.files.copyAll(ctx, c.src, c.dst)
	if err != nil {
		return stats, err
	}
	return stats, c.files.flush(c.dst)
}
