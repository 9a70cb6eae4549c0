package agent

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"time"

	"stillframe/hypervisor/guest"
	"stillframe/hypervisor/guest/clock"
)

// StillnessReport is what Stillness measured. Times are the node's, except the round trip, which is the guest's.
type StillnessReport struct {
	Samples int `json:"samples"`
	Resent  int `json:"resent"` // requests that had no answer in time
	// LargestGap is the longest time between two consecutive answers: the longest stillness plus one round trip.
	LargestGap time.Duration `json:"largest_gap_ns"`
	// LargestGapAt is when the largest gap began, nanoseconds of Unix time.
	LargestGapAt int64 `json:"largest_gap_at_unix_ns"`
	// MedianGap and MedianRoundTrip say how fine the measurement is.
	MedianGap       time.Duration `json:"median_gap_ns"`
	MedianRoundTrip time.Duration `json:"median_round_trip_ns"`
	Elapsed         time.Duration `json:"elapsed_ns"` // from the first answer to the last
}

// maxSamples bounds the memory of the medians; later samples still count for everything else.
const maxSamples = 1 << 18

// Stillness asks the node's clock over and over, one request at a time, and reports the largest gap between answers.
// It ends with ctx or after its -for, prints the report to stdout, and keeps a
// progress file up to date meanwhile.
func Stillness(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("stillness", flag.ContinueOnError)
	addr := flags.String("clock", net.JoinHostPort(guest.HostIP, strconv.Itoa(guest.ClockPort)), "the node's clock")
	length := flags.Duration("for", 10*time.Second, "how long to measure; 0 is until interrupted")
	every := flags.Duration("every", time.Millisecond, "pause between an answer and the next request")
	timeout := flags.Duration("timeout", 20*time.Millisecond, "when to send a request again")
	progress := flags.String("file", "", "file that is rewritten with the report so far, ten times a second")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *length > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *length)
		defer cancel()
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp4", *addr)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is buffered
	m := &stillness{conn: conn, timeout: *timeout}
	for last := time.Now(); ctx.Err() == nil; {
		if err := m.sample(ctx); err != nil {
			return err
		}
		if *progress != "" && time.Since(last) > 100*time.Millisecond {
			last = time.Now()
			if err := m.save(*progress); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(*every):
		}
	}
	if *progress != "" {
		if err := m.save(*progress); err != nil {
			return err
		}
	}
	if m.report.Samples == 0 {
		return fmt.Errorf("no answer from the clock at %s", *addr)
	}
	return json.NewEncoder(stdout).Encode(m.final())
}

type stillness struct {
	conn    net.Conn
	timeout time.Duration

	token       uint64
	first, last time.Time
	gaps, trips []time.Duration
	report      StillnessReport
}

// sample gets one time from the clock, asking again until it comes.
func (m *stillness) sample(ctx context.Context) error {
	for ctx.Err() == nil {
		m.token++
		sent := time.Now()
		req := clock.Request(m.token)
		_ = m.conn.SetDeadline(sent.Add(m.timeout))
		if _, err := m.conn.Write(req[:]); err == nil {
			at, err := m.await()
			if err == nil {
				m.add(at, time.Since(sent))
				return nil
			}
			var ne net.Error
			if !errors.As(err, &ne) {
				return err
			}
		}
		m.report.Resent++
		// Refused comes back at once; without a pause a clock that is not there would be asked in a tight loop.
		if rest := m.timeout - time.Since(sent); rest > 0 {
			time.Sleep(rest)
		}
	}
	return nil
}

// await reads until the answer to the last request comes; answers to earlier ones are dropped.
func (m *stillness) await() (time.Time, error) {
	buf := make([]byte, 512)
	for {
		n, err := m.conn.Read(buf)
		if err != nil {
			return time.Time{}, err
		}
		if token, at, err := clock.ParseReply(buf[:n]); err == nil && token == m.token {
			return at, nil
		}
	}
}

func (m *stillness) add(at time.Time, trip time.Duration) {
	m.report.Samples++
	if m.report.Samples == 1 {
		m.first, m.last = at, at
	}
	gap := at.Sub(m.last)
	if gap > m.report.LargestGap {
		m.report.LargestGap, m.report.LargestGapAt = gap, m.last.UnixNano()
	}
	if m.report.Samples > 1 && len(m.gaps) < maxSamples {
		m.gaps, m.trips = append(m.gaps, gap), append(m.trips, trip)
	}
	m.last = at
}

func (m *stillness) final() StillnessReport {
	r := m.report
	r.Elapsed = m.last.Sub(m.first)
	r.MedianGap, r.MedianRoundTrip = median(m.gaps), median(m.trips)
	return r
}

// save writes the report so far, without medians: sorting would be a stillness of its own making.
func (m *stillness) save(file string) error {
	r := m.report
	r.Elapsed = m.last.Sub(m.first)
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return replaceFile(file, append(b, '\n'), 0o644)
}

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}
