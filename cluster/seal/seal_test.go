package seal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stillframe/fsm"
)

const secret = "Bearer s3cret-value"

// newRing makes a folder with keys and a ring of its own file.
func newRing(t *testing.T) (*Ring, string) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, Make(dir))
	r, err := Open(filepath.Join(dir, FileName), slog.Default())
	require.NoError(t, err)
	return r, dir
}

func testPolicy() *fsm.NetworkPolicy {
	return &fsm.NetworkPolicy{Mode: fsm.PolicyCustom, Transforms: []fsm.Transform{
		{Domain: "api.example.com", InjectHeaders: map[string]string{"Authorization": secret, "x-b": ""}},
		{Domain: "b.example.com", StripHeaders: []string{"cookie"}},
	}}
}

func kindOf(t *testing.T, err error) fsm.Kind {
	t.Helper()
	var e *fsm.Error
	require.ErrorAs(t, err, &e)
	return e.Kind
}

func TestSealAndOpen(t *testing.T) {
	r, _ := newRing(t)
	given := testPolicy()
	sealed, err := r.SealPolicy("org-a", given)
	require.NoError(t, err)
	require.Equal(t, testPolicy(), given, "what was given is not changed")
	raw, err := json.Marshal(sealed)
	require.NoError(t, err)
	require.NotContains(t, string(raw), "s3cret")
	require.Equal(t, r.SealingKey(), KeyOf(sealed.Transforms[0].InjectHeaders["Authorization"]))
	opened, err := r.OpenPolicy("org-a", sealed)
	require.NoError(t, err)
	require.Equal(t, given, opened)

	again, err := r.SealPolicy("org-a", given)
	require.NoError(t, err)
	require.NotEqual(t, sealed, again, "equal values do not show that they are equal")
	none, err := r.SealPolicy("org-a", nil)
	require.NoError(t, err)
	require.Nil(t, none)

	ca, err := r.NewCA("org-a")
	require.NoError(t, err)
	seed, err := r.OpenCA("org-a", ca)
	require.NoError(t, err)
	require.NotZero(t, seed)
	require.NotContains(t, string(ca), string(seed[:]))
	other, err := r.NewCA("org-a")
	require.NoError(t, err)
	otherSeed, err := r.OpenCA("org-a", other)
	require.NoError(t, err)
	require.NotEqual(t, seed, otherSeed)
}

// A sealed value opens in its place only: not for another organization, domain, header or purpose.
func TestValuesAreBoundToTheirPlace(t *testing.T) {
	r, _ := newRing(t)
	sealed, err := r.SealPolicy("org-a", testPolicy())
	require.NoError(t, err)
	value := sealed.Transforms[0].InjectHeaders["Authorization"]
	ca, err := r.NewCA("org-a")
	require.NoError(t, err)
	with := func(domain, header, v string) *fsm.NetworkPolicy {
		return &fsm.NetworkPolicy{Transforms: []fsm.Transform{{Domain: domain, InjectHeaders: map[string]string{header: v}}}}
	}
	_, err = r.OpenPolicy("org-a", with("api.example.com", "authorization", value))
	require.NoError(t, err, "names compare without case")
	for name, open := range map[string]func() error{
		"organization": func() error { _, err := r.OpenPolicy("org-b", sealed); return err },
		"domain": func() error {
			_, err := r.OpenPolicy("org-a", with("evil.example.com", "Authorization", value))
			return err
		},
		"header": func() error { _, err := r.OpenPolicy("org-a", with("api.example.com", "x-echo", value)); return err },
		"parts run together": func() error {
			_, err := r.OpenPolicy("org-a", with("api.example.comauthorization", "", value))
			return err
		},
		"a header as a CA": func() error { _, err := r.OpenCA("org-a", []byte(value)); return err },
		"a CA as a header": func() error { _, err := r.OpenPolicy("org-a", with("a", "b", string(ca))); return err },
		"another's CA":     func() error { _, err := r.OpenCA("org-b", ca); return err },
	} {
		t.Run(name, func(t *testing.T) {
			err := open()
			require.Equal(t, fsm.KindInternal, kindOf(t, err))
			require.NotContains(t, err.Error(), "s3cret")
		})
	}
}

func TestDamagedValues(t *testing.T) {
	r, _ := newRing(t)
	ca, err := r.NewCA("org-a")
	require.NoError(t, err)
	for i := range ca {
		bad := bytes.Clone(ca)
		bad[i] ^= 1
		_, err := r.OpenCA("org-a", bad)
		require.Error(t, err, "byte %d changed", i)
		_, err = r.OpenCA("org-a", ca[:i])
		require.Error(t, err, "cut to %d bytes", i)
	}
	for _, bad := range []string{
		"", "sealed1:", "sealed1::", "sealed1:k", "clear text", "sealed1:" + r.SealingKey() + ":",
	} {
		_, err := r.OpenCA("org-a", []byte(bad))
		require.Error(t, err, "%q", bad)
	}
	_, err = r.OpenCA("org-a", []byte("sealed1:k-\x1b[2J:AAAA"))
	require.NotContains(t, err.Error(), "\x1b")
}

func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	require.NoError(f, Make(dir))
	r, err := Open(filepath.Join(dir, FileName), slog.Default())
	require.NoError(f, err)
	ca, err := r.NewCA("org-a")
	require.NoError(f, err)
	f.Add(ca)
	f.Add([]byte("sealed1:k-aaaaaaaa:AAAA"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := r.OpenCA("org-a", b)
		if err == nil && !bytes.Equal(b, ca) {
			t.Fatalf("%q opens", b)
		}
	})
}

// A node that has not been given a key says which one it lacks, and takes it up as soon as its file has it.
func TestRotation(t *testing.T) {
	dir, a, b := t.TempDir(), t.TempDir(), t.TempDir()
	first, _, err := Rotate(dir, []string{a, b}, time.Time{}) // there is none yet: this makes and spreads one
	require.NoError(t, err)
	ringA, err := Open(filepath.Join(a, FileName), slog.Default())
	require.NoError(t, err)
	ringB, err := Open(filepath.Join(b, FileName), slog.Default())
	require.NoError(t, err)
	require.Equal(t, ringA.RequestHash([32]byte{1}), ringB.RequestHash([32]byte{1}))
	old, err := ringA.NewCA("org-a")
	require.NoError(t, err)
	require.Equal(t, first, KeyOf(string(old)))

	second, from, err := Rotate(dir, []string{a}, time.Now().Add(-time.Minute)) // b is another host
	require.NoError(t, err)
	require.NotEqual(t, first, second)
	require.True(t, from.Before(time.Now()))
	require.Equal(t, []string{second, first}, ringA.KeyIDs())
	fresh, err := ringA.NewCA("org-a")
	require.NoError(t, err)
	require.Equal(t, second, KeyOf(string(fresh)))
	_, err = ringB.OpenCA("org-a", fresh)
	require.Equal(t, fsm.KindUnavailable, kindOf(t, err))
	require.ErrorContains(t, err, second)
	require.ErrorContains(t, err, FileName)

	_, err = Copy(dir, b)
	require.NoError(t, err)
	for _, r := range []*Ring{ringA, ringB} {
		for _, v := range [][]byte{old, fresh} {
			_, err := r.OpenCA("org-a", v)
			require.NoError(t, err, "the old key still opens")
		}
	}
	require.Equal(t, ringA.RequestHash([32]byte{1}), ringB.RequestHash([32]byte{1}), "hashes outlive a rotation")
}

// A key is not used before its time: it can be brought to the nodes one after the other.
func TestANewKeyWaits(t *testing.T) {
	r, dir := newRing(t)
	first := r.SealingKey()
	second, from, err := Rotate(dir, nil, time.Now().Add(time.Hour))
	require.NoError(t, err)
	require.True(t, from.After(time.Now()))
	require.Equal(t, []string{second, first}, r.KeyIDs())
	require.Equal(t, first, r.SealingKey())
}

// A rotation that is cut off at any point is finished by the next one, with the same key.
func TestRotationCutOff(t *testing.T) {
	dir, a, b := t.TempDir(), t.TempDir(), t.TempDir()
	_, _, err := Rotate(dir, []string{a, b}, time.Time{})
	require.NoError(t, err)
	want, _, err := Rotate(dir, []string{a}, time.Time{}) // ends before b
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(b, FileName+".tmp"), []byte("half"), 0o644))
	got, _, err := Rotate(dir, []string{a, b}, time.Time{})
	require.NoError(t, err)
	require.Equal(t, want, got)
	ring, err := Open(filepath.Join(b, FileName), slog.Default())
	require.NoError(t, err)
	require.Len(t, ring.KeyIDs(), 2)
	st, err := os.Stat(filepath.Join(b, FileName))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
}

// A folder with a key of its own is not overwritten: what is sealed with it could not be opened again.
func TestForeignKeysAreKept(t *testing.T) {
	dir, folder := t.TempDir(), t.TempDir()
	require.NoError(t, Make(dir))
	require.NoError(t, Make(folder))
	before, err := os.ReadFile(filepath.Join(folder, FileName))
	require.NoError(t, err)
	_, err = Copy(dir, folder)
	require.ErrorContains(t, err, "has not")
	_, _, err = Rotate(dir, []string{folder}, time.Time{})
	require.Error(t, err)
	after, err := os.ReadFile(filepath.Join(folder, FileName))
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.NoError(t, Make(folder), "there is one already")
	again, err := os.ReadFile(filepath.Join(folder, FileName))
	require.NoError(t, err)
	require.Equal(t, before, again)
}

func TestBadFiles(t *testing.T) {
	r, dir := newRing(t)
	path := filepath.Join(dir, FileName)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	var f file
	require.NoError(t, json.Unmarshal(good, &f))
	keyText := string(good[bytes.Index(good, []byte(`"key":`)):])
	keyText = strings.Split(keyText, `"`)[3]
	logs := &bytes.Buffer{}
	r.log = slog.New(slog.NewJSONHandler(logs, nil))
	before := r.KeyIDs()
	for name, raw := range map[string]string{
		"empty":      "",
		"no JSON":    "{" + keyText,
		"version":    strings.Replace(string(good), `"version": 1`, `"version": 2`, 1),
		"no keys":    `{"version":1}`,
		"short key":  strings.Replace(string(good), keyText, "AAAA", 1),
		"no base64":  strings.Replace(string(good), keyText, "!"+keyText, 1),
		"same twice": fmt.Sprintf(`{"version":1,"request_key":%q,"keys":[%s,%s]}`, keyText, one(f), one(f)),
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(path, []byte(raw), 0o600))
			_, err := Open(path, slog.Default())
			require.Error(t, err)
			require.NotContains(t, err.Error(), keyText[:8])
			require.Equal(t, before, r.KeyIDs(), "the last good keys stay in force")
		})
	}
	require.Contains(t, logs.String(), "stay in force")
	require.NotContains(t, logs.String(), keyText[:8])
	require.NoError(t, os.WriteFile(path, good, 0o600))
	require.NoError(t, os.Chmod(path, 0o640))
	_, err = Open(path, slog.Default())
	require.ErrorContains(t, err, "can be read by others")
	_, err = Open(filepath.Join(dir, "none"), slog.Default())
	require.True(t, errors.Is(err, os.ErrNotExist))
}

func one(f file) string {
	raw, _ := json.Marshal(f.Keys[0])
	return string(raw)
}

// Reseal brings every value to the newest key, in commands that fit into the log, and then finds nothing left to do.
func TestReseal(t *testing.T) {
	r, dir := newRing(t)
	policy := &fsm.NetworkPolicy{Mode: fsm.PolicyCustom}
	for i := range 10 {
		policy.Transforms = append(policy.Transforms, fsm.Transform{
			Domain: fmt.Sprintf("d%d.example.com", i), InjectHeaders: map[string]string{"x": strings.Repeat("v", 8<<10)},
		})
	}
	sealed, err := r.SealPolicy("org-a", policy)
	require.NoError(t, err)
	ca, err := r.NewCA("org-a")
	require.NoError(t, err)
	seed, err := r.OpenCA("org-a", ca)
	require.NoError(t, err)
	v := fsm.Sealed{Org: "org-a", Sandbox: "sbx-1", Policy: sealed, CA: ca}
	none, err := r.Reseal(v)
	require.NoError(t, err)
	require.Empty(t, none)

	_, _, err = Rotate(dir, nil, time.Now().Add(-time.Minute))
	require.NoError(t, err)
	commands, err := r.Reseal(v)
	require.NoError(t, err)
	require.Greater(t, len(commands), 2)
	fresh := map[string]string{}
	for _, c := range commands {
		c.Now = 1
		_, err := fsm.Encode(c)
		require.NoError(t, err)
		require.Equal(t, fsm.SandboxID("sbx-1"), c.Sandbox)
		for _, h := range c.Headers {
			require.Equal(t, r.SealingKey(), KeyOf(h.Is))
			fresh[h.Was] = h.Is
		}
		if c.CA != nil {
			require.Equal(t, ca, c.CA.Was)
			v.CA = c.CA.Is
		}
	}
	require.Len(t, fresh, 10)
	for _, tr := range v.Policy.Transforms {
		tr.InjectHeaders["x"] = fresh[tr.InjectHeaders["x"]]
	}
	opened, err := r.OpenPolicy("org-a", v.Policy)
	require.NoError(t, err)
	require.Equal(t, policy, opened)
	again, err := r.OpenCA("org-a", v.CA)
	require.NoError(t, err)
	require.Equal(t, seed, again)
	none, err = r.Reseal(v)
	require.NoError(t, err)
	require.Empty(t, none)
}
