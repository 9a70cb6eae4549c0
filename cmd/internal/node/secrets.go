package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"time"

	"stillframe/cluster"
	"stillframe/cluster/seal"
	"stillframe/fsm"
	"stillframe/httpd"
)

// openSecrets opens the keys for secrets of the state in the node's identity folder.
func (n *Node) openSecrets() (*seal.Ring, error) {
	ring, err := seal.Open(n.identity.SecretsFile(), n.cfg.Logger)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: a cluster that was made by an older version gets them from \"stillframe cluster "+
			"rotate-secrets\", run where the cluster's files were made; bring the file to every node", err)
	}
	return ring, err
}

const keysPattern = "GET /secrets/keys"

// keysAnswer tells another node which keys this one has. Ids are no secrets.
type keysAnswer struct {
	Keys []string `json:"keys"`
}

func (n *Node) serveKeys() {
	n.log.Handle(keysPattern, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		body, err := json.Marshal(keysAnswer{n.secrets.KeyIDs()})
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(body) // a caller that is gone is told nothing
	}))
}

// resealRounds bounds how often what changed under a pass is looked at again; the next call goes on.
const resealRounds = 10

// Reseal seals every secret of the state with the newest key. It begins only when every node has that key, and may be
// cut off and repeated: each value is swapped by itself, and only where it is still what was read.
func (n *Node) Reseal(ctx context.Context) (httpd.Resealed, error) {
	key := n.secrets.KeyIDs()[0]
	if using := n.secrets.SealingKey(); using != key {
		return httpd.Resealed{}, fsm.Errorf(fsm.KindConflict, "key %s is not in use yet, so that it can be brought to every "+
			"node first; values are sealed with %s until then", key, using)
	}
	if err := n.everyNodeHas(ctx, key); err != nil {
		return httpd.Resealed{}, err
	}
	done := httpd.Resealed{Key: key}
	for range resealRounds {
		state, err := n.log.Linearizable(ctx)
		if err != nil {
			return done, err
		}
		left, err := n.resealAll(ctx, state, &done)
		if err != nil {
			return done, err
		}
		if left == 0 {
			n.cfg.Logger.InfoContext(ctx, "secrets sealed anew", "key", key, "values", done.Count)
			return done, nil
		}
	}
	return done, fsm.Errorf(fsm.KindUnavailable, "things keep changing while their secrets are sealed anew; %d are done, "+
		"call again for the rest", done.Count)
}

// resealAll is one pass over a state; left counts what was found to need it.
func (n *Node) resealAll(ctx context.Context, state *fsm.State, done *httpd.Resealed) (left int, err error) {
	for _, v := range state.Sealed() {
		commands, err := n.secrets.Reseal(v)
		if err != nil {
			return left, err
		}
		for _, c := range commands {
			left++
			c.Now = fsm.At(time.Now())
			_, err := n.log.Apply(ctx, c)
			var refused *fsm.Error
			switch {
			case err == nil:
				done.Count += len(c.Headers)
				if c.CA != nil {
					done.Count++
				}
			case errors.As(err, &refused) && refused.Kind == fsm.KindConflict: // it changed: the next pass sees how
			default:
				return left, err
			}
		}
	}
	return left, nil
}

// everyNodeHas makes sure that no node would be left unable to open what is sealed with a key.
func (n *Node) everyNodeHas(ctx context.Context, key string) error {
	for _, m := range n.log.State().Nodes() {
		if m.ID == n.id {
			continue
		}
		keys, err := n.keysOf(ctx, m.ID)
		if err != nil {
			return n.tunnels.unreachable(m.ID, err)
		}
		if !slices.Contains(keys, key) {
			return fsm.Errorf(fsm.KindConflict, "node %s has not got key %s: bring the newest %s to its identity folder",
				m.Name, key, seal.FileName)
		}
	}
	return nil
}

func (n *Node) keysOf(ctx context.Context, node fsm.NodeID) ([]string, error) {
	var answer keysAnswer
	err := askNode(ctx, n.log, node, "/secrets/keys", &answer)
	return answer.Keys, err
}

// maxNodeAnswer bounds another node's answer to a question of this package: a thousand decisions of a policy.
const maxNodeAnswer = 2 << 20

// askNode reads an answer in JSON from another node, within ownerPatience. It is for questions that change nothing.
func askNode(ctx context.Context, log *cluster.Node, node fsm.NodeID, path string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, ownerPatience)
	defer cancel()
	conn, err := log.DialCall(ctx, node)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // the exchange is over
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+string(node)+path, nil)
	if err != nil {
		return err
	}
	if err := req.Write(conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if resp.StatusCode != http.StatusOK {
		return errors.New("the node answers " + resp.Status)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, maxNodeAnswer)).Decode(answer)
}
