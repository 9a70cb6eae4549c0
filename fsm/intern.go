package fsm

import "sync"

// interned keeps one copy of texts that come in many rows but have few values: what a node says of its VMM, names of
// files and templates, digests of images. It is no state: whether a text is in it changes nothing but the memory that
// equal ones take.
var interned struct {
	mu    sync.Mutex
	texts map[string]string
}

// maxInterned bounds how many texts are kept; what comes after is left as it is.
const maxInterned = 1 << 14

func intern[S ~string](s *S) {
	if *s == "" {
		return
	}
	interned.mu.Lock()
	defer interned.mu.Unlock()
	if kept, ok := interned.texts[string(*s)]; ok {
		*s = S(kept)
		return
	}
	if interned.texts == nil {
		interned.texts = map[string]string{}
	}
	if len(interned.texts) < maxInterned {
		interned.texts[string(*s)] = string(*s)
	}
}

// intern has a manifest share what the manifests of one node and template have in common.
func (m *Manifest) intern() {
	for _, s := range []*string{&m.VMM, &m.VMMVersion, &m.CPUFingerprint, &m.TemplateDigest, &m.CloneMethod} {
		intern(s)
	}
	for i := range m.Files {
		intern(&m.Files[i].Name)
	}
}

func (sn *Snapshot) intern() {
	intern(&sn.Org)
	intern(&sn.Template)
	intern(&sn.TemplateName)
	intern(&sn.State)
	intern(&sn.Owner)
	if sn.Manifest != nil {
		sn.Manifest.intern()
	}
}

func (sb *Sandbox) intern() {
	intern(&sb.Org)
	intern(&sb.Template)
	intern(&sb.TemplateName)
	intern(&sb.TemplateDigest)
	intern(&sb.State)
	intern(&sb.Owner)
}
