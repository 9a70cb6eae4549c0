package httpd

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/gofiber/fiber/v2"
)

// backup streams the whole replicated state. What is wrong with a stream that has begun cannot be said any more: it
// ends early, and its reader finds no digest at its end.
func (s *Server) backup(c *call) (reply, error) {
	if s.cfg.Backup == nil {
		return unavailable(c)
	}
	ctx, cancel := context.WithTimeout(c.ctx, s.cfg.Limits.Data)
	defer cancel()
	from, err := s.cfg.Backup(ctx)
	if err != nil {
		return reply{}, err
	}
	c.stream = from
	return reply{status: http.StatusOK, contentType: mimeBytes}, nil
}

// startStream has the answer's body written while it is sent, each part within WriteTimeout of the one before.
func (s *Server) startStream(c *call) {
	conn, from, id := c.fc.Context().Conn(), c.stream, c.id
	c.fc.Set(fiber.HeaderContentType, mimeBytes)
	c.fc.Context().SetBodyStreamWriter(func(w *bufio.Writer) {
		_, err := from.WriteTo(&patientWriter{w, conn, s.cfg.Limits.WriteTimeout})
		if err == nil {
			err = w.Flush()
		}
		if err != nil {
			s.logger.Warn("an answer was cut off", "request_id", id, "error", err)
		}
	})
}

// patientWriter gives every write a deadline of its own.
type patientWriter struct {
	io.Writer
	conn    net.Conn
	timeout time.Duration
}

func (w *patientWriter) Write(b []byte) (int, error) {
	if err := w.conn.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
		return 0, err
	}
	return w.Writer.Write(b)
}
