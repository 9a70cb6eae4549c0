package netpolicy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the manager's counters. Labels are tables and steps, which are few; never ids.
type metrics struct {
	networks prometheus.Gauge
	ready    prometheus.Gauge
	taken    *prometheus.CounterVec
	drift    *prometheus.CounterVec
	sealed   prometheus.Counter
	rounds   prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		networks: prometheus.NewGauge(prometheus.GaugeOpts{Name: "stillframe_netpolicy_networks",
			Help: "Networks of sandboxes that are looked after."}),
		ready: prometheus.NewGauge(prometheus.GaugeOpts{Name: "stillframe_netpolicy_ready_namespaces",
			Help: "Namespaces that are kept ready."}),
		taken: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stillframe_netpolicy_namespaces_taken_total",
			Help: "Namespaces given to sandboxes, by whether one was ready or had to be made."}, []string{"from"}),
		drift: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stillframe_netpolicy_drift_total",
			Help: "Times that a table, links or settings were not as they should be, and were mended."},
			[]string{"table"}),
		sealed: prometheus.NewCounter(prometheus.CounterOpts{Name: "stillframe_netpolicy_sealed_total",
			Help: "Times that a sandbox was cut off because its rules could not be put in force."}),
		rounds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "stillframe_netpolicy_round_seconds",
			Help:    "Time of one look at all networks.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 18)}),
	}
	if reg != nil {
		reg.MustRegister(m.networks, m.ready, m.taken, m.drift, m.sealed, m.rounds)
	}
	return m
}

func (m *metrics) round(took time.Duration) { m.rounds.Observe(took.Seconds()) }
