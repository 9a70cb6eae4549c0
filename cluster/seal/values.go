package seal

import (
	"crypto/rand"
	"maps"
	"slices"
	"time"

	"stillframe/fsm"
)

// SealPolicy gives a copy of a policy with the values of its injected headers sealed for an organization; nil for nil.
func (r *Ring) SealPolicy(org fsm.OrgID, p *fsm.NetworkPolicy) (*fsm.NetworkPolicy, error) {
	key := r.current().sealing(time.Now())
	return mapHeaders(p, func(domain, header, value string) (string, error) {
		return key.seal(headerPlace(org, domain, header), []byte(value)), nil
	})
}

// OpenPolicy is the reverse of SealPolicy. Its error is an *fsm.Error.
func (r *Ring) OpenPolicy(org fsm.OrgID, p *fsm.NetworkPolicy) (*fsm.NetworkPolicy, error) {
	k := r.current()
	return mapHeaders(p, func(domain, header, sealed string) (string, error) {
		value, err := k.open(headerPlace(org, domain, header), sealed)
		return string(value), err
	})
}

// mapHeaders gives a copy of a policy with other header values, made in a fixed order.
func mapHeaders(p *fsm.NetworkPolicy, value func(domain, header, value string) (string, error)) (*fsm.NetworkPolicy,
	error,
) {
	if p == nil {
		return nil, nil //nolint:nilnil // no policy is a policy
	}
	out := *p
	out.Transforms = slices.Clone(p.Transforms)
	for i, t := range out.Transforms {
		headers := maps.Clone(t.InjectHeaders)
		for _, name := range slices.Sorted(maps.Keys(headers)) {
			v, err := value(t.Domain, name, headers[name])
			if err != nil {
				return nil, err
			}
			headers[name] = v
		}
		out.Transforms[i].InjectHeaders = headers
	}
	return &out, nil
}

// NewCA makes the seed of a certificate authority, sealed for an organization.
func (r *Ring) NewCA(org fsm.OrgID) ([]byte, error) {
	var seed [32]byte
	_, _ = rand.Read(seed[:])
	return []byte(r.current().sealing(time.Now()).seal(caPlace(org), seed[:])), nil
}

// OpenCA opens a seed that NewCA has sealed. Its error is an *fsm.Error.
func (r *Ring) OpenCA(org fsm.OrgID, sealed []byte) ([32]byte, error) {
	raw, err := r.current().open(caPlace(org), string(sealed))
	if err != nil {
		return [32]byte{}, err
	}
	if len(raw) != 32 {
		return [32]byte{}, errDamaged
	}
	return [32]byte(raw), nil
}

// maxResealBytes bounds the values in one command; one value more may go over it. A header's value has at most 8 KiB,
// and a command 64 KiB.
const maxResealBytes = 24 << 10

// Reseal gives the commands that seal a thing of the state with the key in use, without their time; none when it is
// sealed with that already.
func (r *Ring) Reseal(v fsm.Sealed) ([]fsm.Reseal, error) {
	k := r.current()
	key := k.sealing(time.Now())
	target := fsm.Reseal{Sandbox: v.Sandbox, Snapshot: v.Snapshot, Intent: v.Intent}
	var out []fsm.Reseal
	if len(v.CA) > 0 && KeyOf(string(v.CA)) != key.id {
		seed, err := k.open(caPlace(v.Org), string(v.CA))
		if err != nil {
			return nil, err
		}
		c := target
		c.CA = &fsm.SealSwapCA{Was: v.CA, Is: []byte(key.seal(caPlace(v.Org), seed))}
		out = append(out, c)
	}
	var swaps []fsm.SealSwap
	_, err := mapHeaders(v.Policy, func(domain, header, sealed string) (string, error) {
		if KeyOf(sealed) == key.id {
			return "", nil
		}
		value, err := k.open(headerPlace(v.Org, domain, header), sealed)
		if err == nil {
			swaps = append(swaps, fsm.SealSwap{Was: sealed, Is: key.seal(headerPlace(v.Org, domain, header), value)})
		}
		return "", err
	})
	if err != nil {
		return nil, err
	}
	for len(swaps) > 0 {
		c, size := target, 0
		for len(swaps) > 0 && size < maxResealBytes {
			size += len(swaps[0].Was) + len(swaps[0].Is)
			c.Headers, swaps = append(c.Headers, swaps[0]), swaps[1:]
		}
		out = append(out, c)
	}
	return out, nil
}
