package devvmm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// qmpTimeout bounds every command to QEMU. Nothing asked of it moves guest memory, so seconds mean that it is stuck.
const qmpTimeout = 30 * time.Second

// qmpEvent is something QEMU tells without being asked.
type qmpEvent struct {
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// qmp is a connection to QEMU's control protocol: one command at a time, events in between.
type qmp struct {
	conn    net.Conn
	events  func(qmpEvent) // called from the reading goroutine; must not send commands
	replies chan qmpReply
	closed  chan struct{} // closed when the reading goroutine has ended

	mu sync.Mutex // held for a command and its reply
}

type qmpReply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// newQMP takes over the connection and agrees on the protocol. Close ends its goroutine.
func newQMP(conn net.Conn, events func(qmpEvent)) (*qmp, error) {
	q := &qmp{conn: conn, events: events, replies: make(chan qmpReply), closed: make(chan struct{})}
	greeted := make(chan struct{})
	go q.read(greeted)
	timer := time.NewTimer(qmpTimeout)
	defer timer.Stop()
	select {
	case <-greeted:
	case <-q.closed:
		return nil, errors.New("QEMU ended before it said anything")
	case <-timer.C:
		return nil, errors.Join(errors.New("QEMU does not answer"), q.close())
	}
	if err := q.run("qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, q.close())
	}
	return q, nil
}

func (q *qmp) read(greeted chan<- struct{}) {
	defer close(q.closed)
	lines := bufio.NewReader(q.conn)
	for first := true; ; first = false {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		if first {
			close(greeted)
			continue
		}
		var message struct {
			qmpEvent
			qmpReply
		}
		if json.Unmarshal(line, &message) != nil {
			continue
		}
		if message.Event != "" {
			q.events(message.qmpEvent)
			continue
		}
		timer := time.NewTimer(qmpTimeout)
		select {
		case q.replies <- message.qmpReply:
			timer.Stop()
		case <-timer.C:
			return // nobody waits for a reply any more: its command was given up
		}
	}
}

// run sends a command and waits for its reply. args and out may be nil.
func (q *qmp) run(command string, args, out any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	raw, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("QEMU %s: %w", command, err)
	}
	if err := q.conn.SetWriteDeadline(time.Now().Add(qmpTimeout)); err != nil {
		return fmt.Errorf("QEMU %s: %w", command, err)
	}
	if _, err := q.conn.Write(append(raw, '\n')); err != nil {
		return fmt.Errorf("QEMU %s: %w", command, err)
	}
	timer := time.NewTimer(qmpTimeout)
	defer timer.Stop()
	select {
	case reply := <-q.replies:
		if reply.Error != nil {
			return fmt.Errorf("QEMU %s: %s", command, reply.Error.Desc)
		}
		if out == nil {
			return nil
		}
		return json.Unmarshal(reply.Return, out)
	case <-q.closed:
		return fmt.Errorf("QEMU %s: it has ended", command)
	case <-timer.C:
		// A late reply would be taken for that of the next command.
		return errors.Join(fmt.Errorf("QEMU %s: no reply within %s", command, qmpTimeout), q.conn.Close())
	}
}

func (q *qmp) close() error {
	err := q.conn.Close()
	<-q.closed
	return err
}
