package node

import (
	"errors"
	"fmt"
	"io/fs"

	"stillframe/cluster/seal"
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
