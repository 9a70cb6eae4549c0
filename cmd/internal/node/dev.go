package node

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"stillframe/httpd/client"
)

// devOrg is the organization of a development node.
const devOrg = "dev"

// keyVariable and urlVariable are what clients of the API read.
const (
	keyVariable = "LEAP0_API_KEY"
	urlVariable = "LEAP0_BASE_URL"
)

// WriteDevEnv sees to an organization and a key for development and writes dev.env into the data folder, readable by
// its owner only, whole or not at all. The key of an earlier start is kept while it is good. It gives the file's path.
func (n *Node) WriteDevEnv(ctx context.Context) (string, error) {
	file := filepath.Join(n.cfg.DataDir, "dev.env")
	key, err := n.knownKey(file)
	if err != nil {
		return "", err
	}
	if key == "" {
		if key, err = n.newDevKey(ctx); err != nil {
			return "", err
		}
	}
	content := fmt.Sprintf("%s=%s\n%s=%s\n", keyVariable, key, urlVariable, n.URL())
	if was, err := os.ReadFile(file); err == nil && string(was) == content {
		return file, nil // a node whose disk is full can be started again
	}
	tmp := file + ".tmp"
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		return "", err
	}
	return file, os.Rename(tmp, file)
}

// knownKey reads the key of an earlier start; empty where there is none or it is no longer good.
func (n *Node) knownKey(file string) (string, error) {
	f, err := os.Open(file) // in the data folder
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, ok := strings.CutPrefix(lines.Text(), keyVariable+"=")
		if !ok {
			continue
		}
		if known, ok := n.log.State().KeyByHash(sha256.Sum256([]byte(key))); ok && known.RevokedAt == 0 {
			return key, nil
		}
	}
	return "", nil
}

func (n *Node) newDevKey(ctx context.Context) (string, error) {
	admin, err := client.New(client.Config{Socket: n.AdminSocket()})
	if err != nil {
		return "", err
	}
	defer admin.Close()
	if _, ok := n.log.State().OrgByName(devOrg); !ok {
		if _, err := admin.CreateOrg(ctx, devOrg); err != nil {
			return "", err
		}
	}
	key, err := admin.CreateKey(ctx, devOrg, "made by stillframe dev")
	return key.Key, err
}
