package farside

import (
	"context"
	"io"
	"net"
	"net/netip"

	"github.com/stretchr/testify/require"
)

// Listen opens a TCP listener in the world, until the test ends. The address may be any; port 0 takes a free one.
func (w *World) Listen(addr string) net.Listener {
	w.t.Helper()
	var l net.Listener
	require.NoError(w.t, w.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp4", addr)
		return err
	}))
	w.t.Cleanup(func() { _ = l.Close() })
	return l
}

// ListenPacket opens a UDP socket in the world, until the test ends.
func (w *World) ListenPacket(addr string) net.PacketConn {
	w.t.Helper()
	var c net.PacketConn
	require.NoError(w.t, w.Do(func() (err error) {
		c, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp4", addr)
		return err
	}))
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// EchoTCP says back what it is told.
func (w *World) EchoTCP(addr string) {
	l := w.Listen(addr)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// EchoUDP says back what it is told, one address a socket, because an answer must come from where the question went.
func (w *World) EchoUDP(addr netip.AddrPort) {
	c := w.ListenPacket(addr.String())
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
}
