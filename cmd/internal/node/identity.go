package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"stillframe/cluster"
	"stillframe/cluster/seal"
	"stillframe/fsm"
)

// soloName is the only member of a cluster of one, in the identity folder in its data folder.
const soloName = "self"

// findIdentity opens the identity folder that the configuration names, or this node's own. A data folder keeps the id
// that it was first used with: the log and the VMs in it are of that node.
func (n *Node) findIdentity() (*cluster.Identity, error) {
	file := filepath.Join(n.cfg.DataDir, "node-id")
	known, err := readNodeID(file)
	if err != nil {
		return nil, err
	}
	dir := n.cfg.Cluster
	if dir == "" {
		if known == "" {
			known = fsm.NodeID(uuid.NewString())
			if err := writeNodeID(file, known); err != nil {
				return nil, err
			}
		}
		if dir, err = soloIdentity(filepath.Join(n.cfg.DataDir, "cluster"), known); err != nil {
			return nil, err
		}
	}
	identity, err := cluster.OpenIdentity(dir, n.cfg.Logger)
	if err != nil {
		return nil, err
	}
	switch known {
	case "":
		return identity, writeNodeID(file, identity.ID())
	case identity.ID():
		return identity, nil
	}
	return nil, fmt.Errorf("data folder %s is of node %s, identity folder %s of node %s", n.cfg.DataDir, known, dir,
		identity.ID())
}

// soloIdentity sees to the identity of a cluster of one: made at the first start, its certificate renewed at each.
func soloIdentity(dir string, id fsm.NodeID) (string, error) {
	folder := filepath.Join(dir, soloName)
	if _, err := os.Stat(filepath.Join(dir, "ca.key")); !errors.Is(err, os.ErrNotExist) {
		return folder, errors.Join(err, cluster.Renew(dir, soloName), soloSecrets(dir, folder))
	}
	return folder, cluster.Init(dir, []cluster.Member{{ID: id, Name: soloName, Addr: "127.0.0.1:0"}})
}

// soloSecrets sees to the keys for secrets, which a data folder of an older version has not.
func soloSecrets(dir, folder string) error {
	if err := seal.Make(dir); err != nil {
		return err
	}
	_, err := seal.Copy(dir, folder)
	return err
}

// readNodeID reads the node's id, empty before the first start. It is never the address, which may change.
func readNodeID(path string) (fsm.NodeID, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	id, err := uuid.ParseBytes(raw)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return fsm.NodeID(id.String()), nil
}

func writeNodeID(path string, id fsm.NodeID) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, []byte(id), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
