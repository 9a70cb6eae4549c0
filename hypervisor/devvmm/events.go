package devvmm

import (
	"encoding/json"
	"io"
	"log/slog"
	"sync"
	"time"
)

// eventMonitor writes what happens as JSON documents with an empty line after each.
type eventMonitor struct {
	start time.Time
	log   *slog.Logger

	mu  sync.Mutex
	out io.Writer // nil: nobody listens
}

func (m *eventMonitor) emit(source, event string) {
	since := time.Since(m.start)
	m.log.Info("event", "source", source, "event", event)
	if m.out == nil {
		return
	}
	type timestamp struct {
		Secs  int64 `json:"secs"`
		Nanos int64 `json:"nanos"`
	}
	raw, err := json.MarshalIndent(struct {
		Timestamp  timestamp         `json:"timestamp"`
		Source     string            `json:"source"`
		Event      string            `json:"event"`
		Properties map[string]string `json:"properties"`
	}{timestamp{int64(since / time.Second), int64(since % time.Second)}, source, event, nil}, "", "  ")
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// A listener that has gone must not stop the VM.
	if _, err := m.out.Write(append(raw, "\n\n"...)); err != nil {
		m.log.Warn("event monitor", "error", err)
	}
}
