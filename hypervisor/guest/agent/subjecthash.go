package agent

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // the hash that file names in OpenSSL's folders are made of; nothing is protected by it
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"unicode/utf16"
)

// The parts of a distinguished name. encoding/asn1 knows by the name of the type that it is a SET.
type (
	attribute struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	relativeNameSET []attribute
)

// subjectHash is the number by which OpenSSL finds an authority in a folder: of the name in one canonical form, in
// which strings are UTF-8, in lower case, and without needless spaces.
func subjectHash(rawSubject []byte) (uint32, error) {
	var name []relativeNameSET
	if _, err := asn1.Unmarshal(rawSubject, &name); err != nil {
		return 0, fmt.Errorf("subject of the certificate: %w", err)
	}
	var canonical []byte
	for _, part := range name {
		for i, a := range part {
			if text, ok := directoryString(a.Value); ok {
				part[i].Value = asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: foldName(text)}
			}
		}
		der, err := asn1.Marshal(part)
		if err != nil {
			return 0, fmt.Errorf("subject of the certificate: %w", err)
		}
		canonical = append(canonical, der...)
	}
	sum := sha1.Sum(canonical) //nolint:gosec // see the import
	return binary.LittleEndian.Uint32(sum[:]), nil
}

// directoryString gives the text of a value that is one, in UTF-8.
func directoryString(v asn1.RawValue) ([]byte, bool) {
	if v.Class != asn1.ClassUniversal {
		return nil, false
	}
	switch v.Tag {
	case asn1.TagUTF8String, asn1.TagPrintableString, asn1.TagIA5String:
		return v.Bytes, true
	case asn1.TagBMPString:
		units := make([]uint16, len(v.Bytes)/2)
		for i := range units {
			units[i] = binary.BigEndian.Uint16(v.Bytes[2*i:])
		}
		return []byte(string(utf16.Decode(units))), true
	}
	return nil, false
}

// foldName folds ASCII letters only, as OpenSSL does.
func foldName(text []byte) []byte {
	space := func(r rune) bool { return r == ' ' || (r >= '\t' && r <= '\r') }
	text = bytes.Join(bytes.FieldsFunc(text, space), []byte{' '})
	for i, c := range text {
		if c >= 'A' && c <= 'Z' {
			text[i] = c + 'a' - 'A'
		}
	}
	return text
}
