package farside

import (
	"context"
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a guest waits for what should come, and what it counts as a timeout. Tests are right at any
// speed: what must be refused is refused long before.
const patience = 20 * time.Second

// Dial connects from the guest.
func (g *Guest) Dial(network, addr string) (net.Conn, error) {
	var c net.Conn
	err := g.Do(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Ask sends one datagram from the guest and waits for the answer to it. A refusal by ICMP is an error of its kind.
func (g *Guest) Ask(addr string, question []byte) ([]byte, error) {
	c, err := g.Dial("udp4", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if _, err := c.Write(question); err != nil {
		return nil, err
	}
	b := make([]byte, 65536)
	n, err := c.Read(b)
	return b[:n], err
}

// Refused tells whether an error is what a program gets when a packet is refused by ICMP as forbidden, or a connection
// with a reset: at once, not by waiting.
func Refused(err error) bool {
	for _, errno := range []unix.Errno{
		unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ECONNREFUSED, unix.ECONNRESET, unix.EACCES, unix.EPERM,
	} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
