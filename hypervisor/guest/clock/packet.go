package clock

import (
	"encoding/binary"
	"fmt"
	"time"
)

// PacketSize is the size in bytes of an NTP packet without extensions (RFC 5905, section 7.3).
const PacketSize = 48

const (
	originOffset   = 24
	receiveOffset  = 32
	transmitOffset = 40

	leapUnknownVersion4Client = 0<<6 | 4<<3 | 3
	leapNoneVersion4Server    = 0<<6 | 4<<3 | 4
	modeMask                  = 7
	modeClient, modeServer    = 3, 4

	// epochOffset is the number of seconds from NTP's epoch, 1900, to Unix's.
	epochOffset = 2208988800
)

// Request is a client's packet; token comes back in the reply's origin timestamp and tells replies apart.
func Request(token uint64) [PacketSize]byte {
	var p [PacketSize]byte
	p[0] = leapUnknownVersion4Client
	binary.BigEndian.PutUint64(p[transmitOffset:], token)
	return p
}

// ParseReply reads a server's packet: the token of the request it answers, and the time at which it was sent.
func ParseReply(p []byte) (token uint64, sent time.Time, err error) {
	if len(p) < PacketSize || p[0]&modeMask != modeServer {
		return 0, time.Time{}, fmt.Errorf("not a clock's reply: %d bytes", len(p))
	}
	return binary.BigEndian.Uint64(p[originOffset:]), fromNTP(binary.BigEndian.Uint64(p[transmitOffset:])), nil
}

// reply makes the answer to a request, or tells that it is none.
func reply(req []byte, received time.Time, now func() time.Time) ([PacketSize]byte, bool) {
	var p [PacketSize]byte
	if len(req) < PacketSize || req[0]&modeMask != modeClient {
		return p, false
	}
	p[0] = leapNoneVersion4Server
	p[1] = 1    // stratum: the node's clock is all there is
	p[3] = 0xec // precision: 2^-20 s
	copy(p[12:16], "LOCL")
	copy(p[originOffset:], req[transmitOffset:PacketSize])
	binary.BigEndian.PutUint64(p[receiveOffset:], toNTP(received))
	binary.BigEndian.PutUint64(p[transmitOffset:], toNTP(now()))
	return p, true
}

// toNTP gives a time as 32 bits of seconds and 32 bits of their fraction, within the era that Unix time is in.
func toNTP(t time.Time) uint64 {
	sec := uint64(t.Unix()+epochOffset) & 0xffffffff // wraps by definition in 2036
	return sec<<32 | uint64(t.Nanosecond())<<32/uint64(time.Second)
}

// fromNTP is the reverse; seconds below 2^31 are taken for the era that begins in 2036.
func fromNTP(v uint64) time.Time {
	sec := int64(v >> 32) // 32 bits
	if sec < 1<<31 {
		sec += 1 << 32
	}
	nanos := (v&0xffffffff)*uint64(time.Second) + 1<<31
	return time.Unix(sec-epochOffset, int64(nanos>>32)) // below 1e9
}
