package gate

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// policyHeader names the rule that refused, on every HTTP answer of the gate's own.
const policyHeader = "X-Stillframe-Policy"

// TLS alerts that say why (RFC 8446, section 6).
const (
	alertAccessDenied     = 49
	alertInternalError    = 80
	alertUnrecognizedName = 112
)

// refuse ends a connection by a ruling and says why, in the words of its protocol where it has some.
func (f *flow) refuse(heard said, r ruling) {
	f.s.note(Decision{
		Kind: kind(heard), Name: r.name, Addr: f.to.Addr(), Port: f.to.Port(), Verdict: Denied, Rule: r.rule,
		Reason: r.reason,
	})
	alert, status := byte(alertAccessDenied), http.StatusForbidden
	if r.name == "" {
		alert = alertUnrecognizedName
	}
	if heard.proto == protoHTTP && heard.err != nil {
		status = http.StatusBadRequest
	}
	f.answer(heard, alert, status, r.rule, sentence(r.name, f.to, r.rule, r.reason))
}

// failed ends a connection that was allowed and could not be made.
func (f *flow) failed(why *failure) {
	if f.ctx.Err() != nil {
		return // cut
	}
	r := f.ruling
	d := Decision{
		Kind: kind(f.said), Name: r.name, Port: f.to.Port(), Verdict: Allowed, Rule: r.rule, Reason: why.reason,
	}
	if r.way == toAddress {
		d.Addr = f.to.Addr()
	}
	alert, status := byte(alertInternalError), http.StatusBadGateway
	if why.what == "floor" {
		d.Verdict, d.Rule = Denied, why.rule
		alert, status = alertAccessDenied, http.StatusForbidden
	}
	f.s.gate.metrics.failures.WithLabelValues(why.what).Inc()
	f.s.note(d)
	f.answer(f.said, alert, status, d.Rule, sentence(r.name, f.to, d.Rule, why.reason))
}

// answer says an alert, an HTTP answer or nothing, and closes.
func (f *flow) answer(heard said, alert byte, status int, rule, text string) {
	_ = f.client.SetDeadline(time.Now().Add(time.Second)) // a guest that does not read its answer is not waited for
	switch heard.proto {
	case protoTLS:
		// A record of type alert, version 1.2 as every version writes it, fatal.
		_, _ = f.client.Write([]byte{21, 3, 3, 0, 2, 2, alert})
	case protoHTTP:
		_, _ = io.WriteString(f.client, httpAnswer(status, rule, text))
	default:
		reset(f.client)
		return
	}
	// With bytes unread, closing would send an RST, and that could overtake the answer.
	if c, ok := f.client.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, f.client, int64(f.s.limits.HelloBytes))
	}
}

func httpAnswer(status int, rule, text string) string {
	return fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\n%s: %s\r\nContent-Length: %d\r\n"+
		"Connection: close\r\n\r\n%s\n", status, http.StatusText(status), policyHeader, rule, len(text)+1, text)
}

// sentence is the one line that a refusal says. name is canonical or empty; nothing in it is of the guest's making.
func sentence(name string, to netip.AddrPort, rule, reason string) string {
	var b strings.Builder
	target := to.String()
	if name != "" {
		target = net.JoinHostPort(name, fmt.Sprint(to.Port()))
	}
	fmt.Fprintf(&b, "stillframe: %s: %s", target, rule)
	if reason != "" {
		fmt.Fprintf(&b, " (%s)", reason)
	}
	return b.String()
}
