package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"stillframe/cluster"
	"stillframe/fsm"
	"stillframe/hypervisor"
)

// tunnels carry connections to agents between nodes: the node that was called opens one through the owner of the
// sandbox and speaks to the agent as if it ran there. What passes is streamed, and bounded by the call's context at one
// end and the agent's answer at the other.
type tunnels struct {
	log    *cluster.Node
	ctx    context.Context // ends with stop
	cancel context.CancelFunc

	mu      sync.Mutex // guards stopped and, against it, the growth of open
	stopped bool
	open    sync.WaitGroup
}

const (
	tunnelPattern  = "POST /guest/{sandbox}"
	tunnelProtocol = "stillframe-guest"
	// ownerPatience bounds reaching the owner; the owner has as long again to reach the agent.
	ownerPatience = 10 * time.Second
)

func newTunnels(log *cluster.Node) *tunnels {
	t := &tunnels{log: log}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// stop ends every tunnel and waits for it.
func (t *tunnels) stop() {
	t.mu.Lock()
	t.stopped = true
	t.mu.Unlock()
	t.cancel()
	t.open.Wait()
}

// dial opens a connection to the agent of a sandbox through its owner. Its errors are of type *fsm.Error, and of kinds
// that mean that the agent was not asked for anything.
func (t *tunnels) dial(ctx context.Context, owner fsm.NodeID, id fsm.SandboxID) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*ownerPatience)
	defer cancel()
	conn, err := t.log.DialCall(ctx, owner)
	if err != nil {
		return nil, t.unreachable(owner, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	tunnel, err := askForTunnel(conn, owner, id)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err == nil {
		return tunnel, nil
	}
	_ = conn.Close()
	var refused *fsm.Error
	if errors.As(err, &refused) {
		return nil, refused
	}
	return nil, t.unreachable(owner, err)
}

// unreachable names the node that does not answer. The cause is kept as text only: that it may be a deadline is no
// statement about the call's own.
func (t *tunnels) unreachable(owner fsm.NodeID, err error) *fsm.Error {
	return fsm.Wrap(fsm.KindUnavailable, errors.New(err.Error()),
		"node %s, on which the sandbox is, cannot be reached", nodeLabel(t.log, owner))
}

// nodeLabel is what people call a node.
func nodeLabel(log *cluster.Node, id fsm.NodeID) string {
	if node, ok := log.State().Node(id); ok && node.Name != "" {
		return node.Name
	}
	return string(id)
}

func askForTunnel(conn net.Conn, owner fsm.NodeID, id fsm.SandboxID) (net.Conn, error) {
	// The context is the connection's: no client carries the request.
	url := "http://" + string(owner) + "/guest/" + string(id)
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", tunnelProtocol)
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return &bufferedConn{conn, in}, nil
	}
	defer resp.Body.Close() //nolint:errcheck // the tunnel has failed already
	return nil, readRefusal(resp)
}

// refusal is why another node does not do what it was asked for.
type refusal struct {
	Kind    fsm.Kind `json:"kind"`
	Message string   `json:"message"`
}

func readRefusal(resp *http.Response) error {
	var why refusal
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&why); err != nil || why.Kind == "" {
		return errors.New("the node answers " + resp.Status)
	}
	return fsm.Errorf(why.Kind, "%s", why.Message)
}

// bufferedConn is a connection of which some bytes have been read ahead.
type bufferedConn struct {
	net.Conn
	in *bufio.Reader
}

func (c *bufferedConn) Read(b []byte) (int, error) { return c.in.Read(b) }

// serve lets other nodes through to the agents of this node's sandboxes.
func (t *tunnels) serve(owner *hypervisor.Owner) {
	t.log.Handle(tunnelPattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !t.begin() {
			refuse(w, fsm.Errorf(fsm.KindUnavailable, "the sandbox's node is stopping"), "")
			return
		}
		defer t.open.Done()
		ctx, cancel := context.WithTimeout(r.Context(), ownerPatience)
		defer cancel()
		agent, err := owner.DialGuest(ctx, fsm.SandboxID(r.PathValue("sandbox")))
		if err != nil {
			refuse(w, err, agentLost)
			return
		}
		defer agent.Close() //nolint:errcheck // the call is over
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			refuse(w, err, agentLost)
			return
		}
		defer conn.Close() //nolint:errcheck // the call is over
		t.splice(conn, buffered.Reader, agent)
	}))
}

func (t *tunnels) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return false
	}
	t.open.Add(1)
	return true
}

const agentLost = "the sandbox's agent cannot be reached"

// refuse answers another node with an error of ours as it is, and with otherwise for any other.
func refuse(w http.ResponseWriter, err error, otherwise string) {
	why := refusal{fsm.KindUnavailable, otherwise}
	var known *fsm.Error
	if errors.As(err, &known) {
		why = refusal{known.Kind, known.Message}
	}
	body, err := json.Marshal(why)
	if err != nil {
		body = nil
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = w.Write(body) // a caller that is gone is told nothing
}

// splice passes bytes both ways until one side has ended; then the call is over, for calls do not share a connection.
func (t *tunnels) splice(conn net.Conn, in io.Reader, agent net.Conn) {
	const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + tunnelProtocol + "\r\n\r\n"
	if _, err := io.WriteString(conn, switching); err != nil {
		return
	}
	var both sync.WaitGroup
	end := sync.OnceFunc(func() {
		_ = agent.Close()
		_ = conn.Close()
	})
	stop := context.AfterFunc(t.ctx, end)
	defer stop()
	both.Go(func() {
		defer end()
		_, _ = io.Copy(agent, in)
	})
	both.Go(func() {
		defer end()
		_, _ = io.Copy(conn, agent)
	})
	both.Wait()
}
