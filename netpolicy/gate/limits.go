package gate

import (
	"cmp"
	"time"
)

// Limits bound what one sandbox can hold of its node. A zero field means its default.
type Limits struct {
	HelloBytes     int           // before a connection has said what it wants; 64 KiB
	HelloTime      time.Duration // the same; 5 s
	Connections    int           // open at once; 1024
	ConnectionRate int           // new per second, twice that in a burst; 200
	DNSRate        int           // queries per second, twice that in a burst; 200
	DNSPending     int           // queries that wait for a resolver; 128
	DNSConnections int           // open TCP connections to the DNS server; 32
	DialTime       time.Duration // to resolve a name and connect; 10 s
	LogSize        int           // decisions kept; 1000
}

func (l Limits) withDefaults() Limits {
	l.HelloBytes = cmp.Or(l.HelloBytes, 64<<10)
	l.HelloTime = cmp.Or(l.HelloTime, 5*time.Second)
	l.Connections = cmp.Or(l.Connections, 1024)
	l.ConnectionRate = cmp.Or(l.ConnectionRate, 200)
	l.DNSRate = cmp.Or(l.DNSRate, 200)
	l.DNSPending = cmp.Or(l.DNSPending, 128)
	l.DNSConnections = cmp.Or(l.DNSConnections, 32)
	l.DialTime = cmp.Or(l.DialTime, 10*time.Second)
	l.LogSize = cmp.Or(l.LogSize, 1000)
	return l
}
