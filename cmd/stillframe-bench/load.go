package main

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// loadResult is what a load came to. Errors counts calls that failed; Failure is the first.
type loadResult struct {
	PerSecond float64       `json:"per_second"`
	Median    time.Duration `json:"median"`
	Errors    int           `json:"errors"`
	Failure   string        `json:"failure,omitempty"`
}

func (r loadResult) err() error {
	if r.Errors > 0 {
		return fmt.Errorf("%d calls failed, first: %s", r.Errors, r.Failure)
	}
	if r.PerSecond == 0 {
		return errors.New("no call was made")
	}
	return nil
}

// warmUp is how much of a load is not counted.
const warmUp = time.Second

// load has a number of clients call one after the other, each for itself, for a time after a warm-up.
func load(clients int, duration time.Duration, call func(client int) error) loadResult {
	var (
		work    sync.WaitGroup
		mu      sync.Mutex
		took    []time.Duration
		failure error
		errs    int
		end     atomic.Bool
		counted atomic.Bool
	)
	for client := range clients {
		work.Go(func() {
			var own []time.Duration
			for !end.Load() {
				began := time.Now()
				err := call(client)
				switch {
				case err != nil:
					mu.Lock()
					if errs++; errs == 1 {
						failure = err
					}
					mu.Unlock()
					time.Sleep(time.Millisecond)
				case counted.Load() && !end.Load():
					own = append(own, time.Since(began))
				}
			}
			mu.Lock()
			took = append(took, own...)
			mu.Unlock()
		})
	}
	time.Sleep(warmUp)
	counted.Store(true)
	began := time.Now()
	time.Sleep(duration)
	end.Store(true)
	counting := time.Since(began)
	work.Wait()
	slices.Sort(took)
	res := loadResult{PerSecond: float64(len(took)) / counting.Seconds(), Errors: errs}
	if len(took) > 0 {
		res.Median = took[len(took)/2]
	}
	if failure != nil {
		res.Failure = failure.Error()
	}
	return res
}
