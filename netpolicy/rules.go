package netpolicy

import (
	"fmt"
	"net/netip"
	"strings"
)

// forwarding says which packets the kernel carries by itself: an ordered list, of which the first range that holds the
// destination decides. What no range holds is refused, so the zero value carries nothing.
type forwarding []verdict

type verdict struct {
	to    netip.Prefix
	allow bool
}

// allows tells what becomes of a packet to an address.
func (f forwarding) allows(to netip.Addr) bool {
	for _, v := range f {
		if v.to.Contains(to) {
			return v.allow
		}
	}
	return false
}

// opens tells whether anything is carried at all.
func (f forwarding) opens() bool {
	for _, v := range f {
		if v.allow {
			return true
		}
	}
	return false
}

// Bounds are what one sandbox may take of the node. Zero means the default of each.
//
// The gate refuses what goes beyond them, and says so. The kernel counts also what is not the gate's, and can only
// drop, so it does so later: at four times as many connections, and at two and a half times as many new ones.
type Bounds struct {
	Connections    int // at once; 1024
	NewPerSecond   int // new connections in a second, twice as many in a burst; 200
	BytesPerSecond int // each direction; zero means no bound
}

func (b Bounds) orDefault() Bounds {
	if b.Connections <= 0 {
		b.Connections = 1024
	}
	if b.NewPerSecond <= 0 {
		b.NewPerSecond = 200
	}
	b.BytesPerSecond = min(b.BytesPerSecond, 4095<<20) // of what the match can count
	return b
}

// entries is how many connections the kernel lets be open, before it drops what would open more.
func (b Bounds) entries() int { return 4 * b.Connections }

// newFlows is how many new connections a second the kernel lets through. It counts in ten-thousandths of a second, and
// iptables-save prints what that makes of a rate.
func (b Bounds) newFlows() int { return 10000 / (10000 / max(min(b.NewPerSecond*5/2, 5000), 1)) }

// The rules are written as iptables-save prints them, so that what is read back can be compared with what was meant.

// fixedTables are the tables that are the same whatever the policy is.
//
// raw lets in nothing that does not bear the guest's own addresses, and keeps what is between the node and the guest
// (the agent, the clock) out of connection tracking: a guest that fills its table does not lose its node. mangle has a
// checksum that the guest has left to be written written at once, wherever it says, so that what is judged afterwards
// is what leaves; finishPackets does the same for packets that are yet to be cut.
func fixedTables(b Bounds) string {
	var r strings.Builder
	r.WriteString("*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n")
	fmt.Fprintf(&r, "-A PREROUTING -i %s -m mac ! --mac-source %s -j DROP\n", TapName, GuestMAC)
	fmt.Fprintf(&r, "-A PREROUTING ! -s %s/32 -i %s -j DROP\n", GuestIP, TapName)
	if b.BytesPerSecond > 0 {
		fmt.Fprintf(&r, "-A PREROUTING -i %s -m hashlimit %s %dkb/s --hashlimit-name sf-up"+
			" --hashlimit-htable-size 1 --hashlimit-htable-max 1 -j DROP\n",
			TapName, byteRateOption, max(b.BytesPerSecond>>10, 1))
	}
	fmt.Fprintf(&r, "-A PREROUTING -s %s/32 -d %s/32 -i %s -p tcp -m tcp --sport %d -j CT --notrack\n",
		GuestIP, HostIP, TapName, AgentPort)
	fmt.Fprintf(&r, "-A PREROUTING -s %s/32 -d %s/32 -i %s -p udp -m udp --dport %d -j CT --notrack\n",
		GuestIP, HostIP, TapName, ClockPort)
	fmt.Fprintf(&r, "-A OUTPUT -s %s/32 -d %s/32 -o %s -p tcp -m tcp --dport %d -j CT --notrack\n",
		HostIP, GuestIP, TapName, AgentPort)
	fmt.Fprintf(&r, "-A OUTPUT -s %s/32 -d %s/32 -o %s -p udp -m udp --sport %d -j CT --notrack\n",
		HostIP, GuestIP, TapName, ClockPort)
	r.WriteString("COMMIT\n*mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n")
	r.WriteString(":OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n")
	fmt.Fprintf(&r, "-A PREROUTING -i %s -j CHECKSUM --checksum-fill\n", TapName)
	r.WriteString("COMMIT\n*nat\n")
	r.WriteString(":PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n")
	fmt.Fprintf(&r, "-A PREROUTING -i %s -p udp -m udp --dport 53 -j REDIRECT --to-ports %d\n", TapName, DNSPort)
	fmt.Fprintf(&r, "-A PREROUTING -i %s -p tcp -m tcp --dport 53 -j REDIRECT --to-ports %d\n", TapName, DNSPort)
	fmt.Fprintf(&r, "-A PREROUTING -i %s -p tcp -j REDIRECT --to-ports %d\n", TapName, ProxyPort)
	fmt.Fprintf(&r, "-A POSTROUTING -o %s -j MASQUERADE\n", UplinkName)
	r.WriteString("COMMIT\n")
	return r.String()
}

// filterTable is the table that the policy is in. A packet is carried if every one of the policies lets it pass: two
// are in force while one replaces another.
//
// Each packet is checked, those of established connections too, in both directions: a connection that the policy does
// not allow any more stops with the next packet.
func filterTable(b Bounds, policies ...forwarding) string {
	carries := len(policies) > 0
	for _, p := range policies {
		carries = carries && p.opens()
	}
	var r strings.Builder
	r.WriteString("*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\n:SF-NEW - [0:0]\n")
	if carries {
		r.WriteString(":SF-BACK - [0:0]\n:SF-OUT - [0:0]\n")
		for i := range policies {
			fmt.Fprintf(&r, ":SF-BACK-%d - [0:0]\n:SF-OUT-%d - [0:0]\n", i, i)
		}
	}
	inputRules(&r)
	if carries {
		fmt.Fprintf(&r, "-A FORWARD -d %s/32 -i %s -o %s -j SF-BACK\n", GuestIP, UplinkName, TapName)
		fmt.Fprintf(&r, "-A FORWARD -i %s -o %s -j SF-OUT\n", TapName, UplinkName)
	}
	// Refused at once, so that a program in the guest does not wait for a timeout.
	fmt.Fprintf(&r, "-A FORWARD -i %s -p tcp -j REJECT --reject-with tcp-reset\n", TapName)
	fmt.Fprintf(&r, "-A FORWARD -i %s -j REJECT --reject-with icmp-admin-prohibited\n", TapName)
	fmt.Fprintf(&r, "-A OUTPUT -d %s/32 -o %s -j ACCEPT\n", GuestIP, TapName)
	newRules(&r, b)
	if carries {
		for i, p := range policies {
			policyRules(&r, i, p)
		}
		passRules(&r, len(policies))
	}
	r.WriteString("COMMIT\n")
	return r.String()
}

// inputRules are for what ends in the namespace: replies of the agent, the clock, and what was led to the gate.
func inputRules(r *strings.Builder) {
	fmt.Fprintf(r, "-A INPUT -s %s/32 -d %s/32 -i %s -p tcp -m tcp --sport %d ! --tcp-flags FIN,SYN,RST,ACK SYN"+
		" -m conntrack --ctstate UNTRACKED -j ACCEPT\n", GuestIP, HostIP, TapName, AgentPort)
	fmt.Fprintf(r, "-A INPUT -s %s/32 -d %s/32 -i %s -p udp -m udp --dport %d"+
		" -m conntrack --ctstate UNTRACKED -j ACCEPT\n", GuestIP, HostIP, TapName, ClockPort)
	fmt.Fprintf(r, "-A INPUT -i %s -m conntrack --ctstate INVALID -j DROP\n", TapName)
	fmt.Fprintf(r, "-A INPUT -i %s -m conntrack --ctstate NEW -j SF-NEW\n", TapName)
	for _, l := range []struct {
		protocol string
		port     int
	}{{"tcp", ProxyPort}, {"tcp", DNSPort}, {"udp", DNSPort}} {
		fmt.Fprintf(r, "-A INPUT -d %s/32 -i %s -p %s -m conntrack --ctstate DNAT -m %s --dport %d -j ACCEPT\n",
			HostIP, TapName, l.protocol, l.protocol, l.port)
	}
	fmt.Fprintf(r, "-A INPUT -i %s -p tcp -j REJECT --reject-with tcp-reset\n", TapName)
	fmt.Fprintf(r, "-A INPUT -i %s -j REJECT --reject-with icmp-admin-prohibited\n", TapName)
}

// newRules bound new connections. What is dropped here is never entered into the connection table.
func newRules(r *strings.Builder, b Bounds) {
	fmt.Fprintf(r, "-A SF-NEW -m connlimit --connlimit-above %d --connlimit-mask 0 --connlimit-saddr -j DROP\n",
		b.entries())
	fmt.Fprintf(r, "-A SF-NEW -m limit --limit %d/sec --limit-burst %d -j RETURN\n", b.newFlows(), 2*b.newFlows())
	r.WriteString("-A SF-NEW -j DROP\n")
}

// policyRules are one policy, for packets to the outside and for those that come back. An answer is judged by where its
// connection was opened to, so that an error of a router on the way gets through, and nothing else of it.
func policyRules(r *strings.Builder, i int, p forwarding) {
	for _, v := range p {
		if v.allow {
			fmt.Fprintf(r, "-A SF-BACK-%d -m conntrack --ctorigdst %s -j RETURN\n", i, origDst(v.to))
		} else {
			fmt.Fprintf(r, "-A SF-BACK-%d -m conntrack --ctorigdst %s -j DROP\n", i, origDst(v.to))
		}
	}
	fmt.Fprintf(r, "-A SF-BACK-%d -j DROP\n", i)
	for _, v := range p {
		to := ""
		if v.to.Bits() > 0 { // iptables-save leaves out what holds everything
			to = " -d " + v.to.String()
		}
		if v.allow {
			fmt.Fprintf(r, "-A SF-OUT-%d%s -j RETURN\n", i, to)
		} else {
			fmt.Fprintf(r, "-A SF-OUT-%d%s -j REJECT --reject-with icmp-admin-prohibited\n", i, to)
		}
	}
	fmt.Fprintf(r, "-A SF-OUT-%d -j REJECT --reject-with icmp-admin-prohibited\n", i)
}

// passRules let pass what each of n policies has returned. TCP never goes this way: the gate carries it.
func passRules(r *strings.Builder, n int) {
	r.WriteString("-A SF-BACK -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP\n")
	r.WriteString("-A SF-BACK ! -p icmp -m conntrack --ctstate RELATED -j DROP\n")
	for i := range n {
		fmt.Fprintf(r, "-A SF-BACK -j SF-BACK-%d\n", i)
	}
	r.WriteString("-A SF-BACK -j ACCEPT\n")
	r.WriteString("-A SF-OUT -p tcp -j REJECT --reject-with tcp-reset\n")
	r.WriteString("-A SF-OUT -m conntrack --ctstate INVALID -j DROP\n")
	for i := range n {
		fmt.Fprintf(r, "-A SF-OUT -j SF-OUT-%d\n", i)
	}
	r.WriteString("-A SF-OUT -m conntrack --ctstate NEW -j SF-NEW\n")
	r.WriteString("-A SF-OUT -j ACCEPT\n")
}

// origDst writes a range as iptables-save does for conntrack: a single address without its length.
func origDst(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// Tables that close IPv6 and ARP. IPv6 is off in the namespace (disable_ipv6); these are the second bolt. ARP of the
// guest is answered only for what it is: what it claims beyond would fill a table that all namespaces share.
const (
	closedIPv6 = "*raw\n:PREROUTING DROP [0:0]\n:OUTPUT DROP [0:0]\nCOMMIT\n" +
		"*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\nCOMMIT\n"
	closedARP = "*filter\n:INPUT DROP\n:OUTPUT DROP\n" +
		"-A INPUT -j ACCEPT -i " + TapName + " -s " + GuestIP + " --src-mac " + GuestMAC + " -d " + HostIP + "\n" +
		"-A OUTPUT -j ACCEPT -o " + TapName + " -s " + HostIP + " -d " + GuestIP + "\nCOMMIT\n"
)
