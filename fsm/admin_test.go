package fsm

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPutOrg(t *testing.T) {
	w := newWorld(t)
	w.refused(PutOrg{Now: w.now, Org: Org{ID: "org-c", Name: "alpha"}}, KindConflict, `"alpha" already exists`)
	w.refused(PutOrg{Now: w.now, Org: Org{Name: "gamma"}}, KindInvalid, "id")
	w.refused(PutOrg{Now: w.now, Org: Org{ID: "org\x00c", Name: "gamma"}}, KindInvalid, "id")
	w.refused(PutOrg{Now: w.now, Org: Org{ID: "org-c"}}, KindInvalid, "name")
	w.refused(PutOrg{Org: Org{ID: "org-c", Name: "gamma"}}, KindInvalid, "time")
	w.refused(PutOrg{Now: w.now, Org: Org{ID: "org-c", Name: "gamma", MaxSandboxes: -1}}, KindInvalid, "limit")

	w.pass(time.Hour)
	w.ok(PutOrg{Now: w.now, Org: Org{ID: "org-a", Name: "renamed", MaxSandboxes: 3}})
	org, ok := w.s.OrgByName("renamed")
	require.True(t, ok)
	require.Equal(t, Org{ID: "org-a", Name: "renamed", CreatedAt: t0, MaxSandboxes: 3}, org)
	_, ok = w.s.OrgByName("alpha")
	require.False(t, ok, "the old name is free")
	w.ok(PutOrg{Now: w.now, Org: Org{ID: "org-c", Name: "alpha"}})
	require.Len(t, w.s.Orgs(), 3)
}

func TestKeys(t *testing.T) {
	w := newWorld(t)
	put := func(id KeyID, org OrgID, hash byte) PutKey {
		return PutKey{Now: w.now, Key: APIKey{ID: id, Org: org, Hash: [32]byte{hash}, RevokedAt: 5}}
	}
	w.refused(put("key-b", "org-x", 2), KindNotFound, "organization org-x")
	w.refused(put("key-a", "org-b", 2), KindConflict, "key-a already exists")
	w.refused(put("key-b", "org-b", 1), KindConflict, "same secret")
	w.refused(put("key-b", "org-b", 0), KindInvalid, "hash")
	w.refused(put("", "org-b", 2), KindInvalid, "id")
	w.ok(put("key-b", "org-b", 2))

	k, ok := w.s.KeyByHash([32]byte{2})
	require.True(t, ok)
	require.Equal(t, APIKey{ID: "key-b", Org: "org-b", Hash: [32]byte{2}, CreatedAt: t0}, k, "a new key is not revoked")
	require.Len(t, w.s.Keys("org-a"), 1)
	require.Empty(t, w.s.Keys("org"), "an organization's id is not a prefix")

	w.pass(time.Minute)
	w.refused(RevokeKey{Now: w.now, ID: "key-x"}, KindNotFound, "key-x")
	w.ok(RevokeKey{Now: w.now, ID: "key-b"})
	revoked := w.now
	w.pass(time.Minute)
	w.ok(RevokeKey{Now: w.now, ID: "key-b"})
	k, _ = w.s.KeyByHash([32]byte{2})
	require.Equal(t, revoked, k.RevokedAt, "the first revocation stands")
	w.refused(put("key-c", "org-b", 2), KindConflict, "same secret")
}

func TestRegisterNode(t *testing.T) {
	w := newWorld(t)
	w.ok(RegisterNode{Now: w.now, Node: Node{ID: "node-2", Drained: true}})
	w.pass(time.Hour)
	w.ok(RegisterNode{Now: w.now, Node: Node{ID: "node-2", Name: "second", Capacity: Capacity{VCPU: 8}}})
	n, ok := w.s.Node("node-2")
	require.True(t, ok)
	require.Equal(t, Node{
		ID: "node-2", Name: "second", Capacity: Capacity{VCPU: 8}, Drained: true, RegisteredAt: t0, Epoch: 1,
	}, n, "to register again neither drains nor undrains")
	w.refused(RegisterNode{Now: w.now, Node: Node{}}, KindInvalid, "id")
	w.refused(RegisterNode{Now: w.now, Node: Node{ID: "n", Capacity: Capacity{MemoryMiB: -1}}}, KindInvalid, "capacity")
	w.refused(RegisterNode{Now: w.now, Node: Node{ID: "n", Capacity: Capacity{DiskMiB: 1 << 60}}}, KindInvalid,
		"capacity")
	require.Len(t, w.s.Nodes(), 2)
}

func TestPutTemplate(t *testing.T) {
	w := newWorld(t)
	put := func(id TemplateID, org OrgID, name, digest string) PutTemplate {
		return PutTemplate{Now: w.now, Template: Template{ID: id, Org: org, Name: name, Digest: digest}}
	}
	res := w.ok(put("tpl-other", "", "system/debian", "sha256:bb"))
	require.Equal(t, TemplateID("tpl-1"), res.Template.ID, "the id of a name stays")
	require.Equal(t, "sha256:bb", res.Template.Digest)
	_, ok := w.s.Template("tpl-other")
	require.False(t, ok)

	w.refused(put("tpl-1", "", "system/other", "sha256:bb"), KindConflict, "tpl-1 already exists")
	w.refused(put("tpl-2", "org-a", "system/mine", "sha256:bb"), KindInvalid, "system/")
	w.refused(put("tpl-2", "org-x", "mine", "sha256:bb"), KindNotFound, "org-x")
	w.refused(put("tpl-2", "org-a", "", "sha256:bb"), KindInvalid, "name")
	w.refused(put("tpl-2", "org-a", "mine", ""), KindInvalid, "digest")
	w.refused(put("tpl-2", "org-a", strings.Repeat("n", 256), "sha256:bb"), KindInvalid, "name")

	w.ok(put("tpl-2", "org-a", "mine", "sha256:cc"))
	w.ok(put("tpl-3", "org-b", "mine", "sha256:dd"))
	w.ok(put("tpl-4", "org-a", "mine", "sha256:cc"))
	w.refused(put("tpl-4", "org-a", "mine", "sha256:ee"), KindConflict, `"mine" already exists`)

	for org, want := range map[OrgID]TemplateID{"org-a": "tpl-2", "org-b": "tpl-3"} {
		got, ok := w.s.TemplateByName(org, "mine")
		require.True(t, ok)
		require.Equal(t, want, got.ID)
		got, ok = w.s.TemplateByName(org, "system/debian")
		require.True(t, ok)
		require.Equal(t, TemplateID("tpl-1"), got.ID)
		require.Len(t, w.s.Templates(org), 2)
	}
	require.Len(t, w.s.Templates(""), 1)
	_, ok = w.s.TemplateByName("org-c", "mine")
	require.False(t, ok)
}
