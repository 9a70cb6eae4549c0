package gate

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics never have a name, an address or a sandbox as a label: those are without bound.
type metrics struct {
	decisions   *prometheus.CounterVec // kind, verdict
	bytes       *prometheus.CounterVec // direction
	limited     *prometheus.CounterVec // what
	failures    *prometheus.CounterVec // what: allowed, and did not come about
	connections prometheus.Gauge
	cut         prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stillframe_egress_decisions_total", Help: "Decisions on what sandboxes wanted to reach.",
		}, []string{"kind", "verdict"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stillframe_egress_bytes_total", Help: "Bytes carried for sandboxes; up is from them.",
		}, []string{"direction"}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stillframe_egress_limited_total", Help: "Connections and queries refused by a sandbox's limits.",
		}, []string{"what"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stillframe_egress_failures_total", Help: "What was allowed and did not come about, by what failed.",
		}, []string{"what"}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "stillframe_egress_connections", Help: "Connections of sandboxes that are open.",
		}),
		cut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stillframe_egress_cut_total", Help: "Connections ended because a new policy does not allow them.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.decisions, m.bytes, m.limited, m.failures, m.connections, m.cut} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}
