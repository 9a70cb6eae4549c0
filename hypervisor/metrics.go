package hypervisor

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"stillframe/fsm"
)

// metrics are the owner's counters. Labels are step and call names, which are few; never ids.
type metrics struct {
	steps    *prometheus.HistogramVec
	failures *prometheus.CounterVec
	vmmCalls *prometheus.HistogramVec
	pause    prometheus.Histogram
	machines prometheus.Gauge
	takenUp  *prometheus.CounterVec
	// policyLost counts running sandboxes whose network policy could not be put in force at a start.
	policyLost prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	fine := prometheus.ExponentialBuckets(0.0005, 2, 18) // 0.5 ms to 65 s
	m := &metrics{
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "stillframe_step_seconds",
			Help: "Time of one step of an intent.", Buckets: fine}, []string{"kind", "step"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stillframe_step_failures_total",
			Help: "Steps that failed."}, []string{"kind", "step"}),
		vmmCalls: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "stillframe_vmm_call_seconds",
			Help: "Time of one call to a VMM's API.", Buckets: fine}, []string{"call"}),
		pause: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "stillframe_snapshot_pause_seconds",
			Help: "How long a snapshot held its source VM paused.", Buckets: fine}),
		machines: prometheus.NewGauge(prometheus.GaugeOpts{Name: "stillframe_vms",
			Help: "VMs that run on this node."}),
		takenUp: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stillframe_take_up_total",
			Help: "What a start found of an earlier run: adopted, resumed, lost, removed."}, []string{"what"}),
		policyLost: prometheus.NewCounter(prometheus.CounterOpts{Name: "stillframe_policy_lost_total",
			Help: "Running sandboxes whose network policy could not be put in force at a start: they reach nothing."}),
	}
	if reg != nil {
		reg.MustRegister(m.steps, m.failures, m.vmmCalls, m.pause, m.machines, m.takenUp, m.policyLost)
	}
	return m
}

func (m *metrics) step(kind fsm.IntentKind, s Step, took time.Duration, err error) {
	m.steps.WithLabelValues(string(kind), string(s)).Observe(took.Seconds())
	if err != nil {
		m.failures.WithLabelValues(string(kind), string(s)).Inc()
	}
}

// vmmCall times a call to a VMM, for the share of an operation that is the VMM's own.
func (m *metrics) vmmCall(name string, call func() error) error {
	began := time.Now()
	err := call()
	m.vmmCalls.WithLabelValues(name).Observe(time.Since(began).Seconds())
	return err
}
