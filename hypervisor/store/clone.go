package store

import (
	"context"
	"errors"
	"os"
	"time"
)

// Clone makes dst a copy of src, which nobody writes to meanwhile: by sharing blocks where the filesystem can, else by
// a copy that keeps holes and leaves out pages of zeros. dst appears under its name only when complete; it is not yet
// on stable storage. It refuses when dst exists.
func (f *Files) Clone(ctx context.Context, src, dst string) (Stats, error) {
	start := time.Now()
	from, err := f.openSource(src)
	if err != nil {
		return Stats{}, err
	}
	defer func() { _ = from.Close() }()
	part, err := f.create(dst)
	if err != nil {
		return Stats{}, err
	}
	stats, err := f.fill(ctx, from, part)
	err = errors.Join(err, part.Close())
	if err == nil {
		err = f.rename(part.Name(), dst)
	}
	if err != nil {
		_ = os.Remove(part.Name())
		return Stats{}, err
	}
	stats.Duration = time.Since(start)
	return stats, nil
}

func (f *Files) fill(ctx context.Context, from, part *os.File) (Stats, error) {
	if err := ctx.Err(); err != nil {
		return Stats{}, err
	}
	info, err := from.Stat()
	if err != nil {
		return Stats{}, wrap(err, OpRead, from.Name())
	}
	err = f.cloneAll(from, part)
	if err == nil {
		return Stats{Method: MethodReflink, Shared: info.Size(), Rounds: 1}, nil
	}
	if !errors.Is(err, ErrUnsupported) {
		return Stats{}, err
	}
	return f.copyAll(ctx, from, part)
}

func (f *Files) openSource(path string) (*os.File, error) {
	if err := f.check(OpRead, path); err != nil {
		return nil, wrap(err, OpRead, path)
	}
	file, err := os.Open(path)
	return file, wrap(err, OpRead, path)
}
