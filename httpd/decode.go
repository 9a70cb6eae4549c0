package httpd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"stillframe/fsm"
)

// fieldErrors collects what is wrong with a request, so that one answer names all of it.
type fieldErrors struct {
	list   []FieldError
	silent []string // see known
}

// maxFieldErrors bounds an answer: a request with a thousand bad entries is told about the first.
const maxFieldErrors = 100

func (e *fieldErrors) add(field, format string, args ...any) {
	if len(e.list) < maxFieldErrors {
		e.list = append(e.list, FieldError{field, fmt.Sprintf(format, args...)})
	}
}

// addOnce adds what is wrong with a field of which nothing is said yet.
func (e *fieldErrors) addOnce(field, message string) {
	for _, f := range e.list {
		if f.Field == field {
			return
		}
	}
	for _, f := range e.silent {
		if f == field {
			return
		}
	}
	e.add(field, "%s", message)
}

// known keeps addOnce from speaking of a field that follows from one already named.
func (e *fieldErrors) known(field string) { e.silent = append(e.silent, field) }

// err is nil when nothing is wrong.
func (e *fieldErrors) err() error {
	if len(e.list) == 0 {
		return nil
	}
	return &apiError{kind: fsm.KindInvalid, message: invalidRequest, fields: e.list}
}

// object is one JSON object of a request. It is read field by field and not by reflection: a field of the wrong type is
// named, fields that are not known are ignored, null means omitted, and 1.5 or "1" is no integer.
type object struct {
	prefix  string // what goes before a field's name in errors, e.g. "network_policy."
	members map[string]json.RawMessage
	errs    *fieldErrors
}

// parseBody reads a request's body; an empty one is {}.
func parseBody(body []byte, errs *fieldErrors) (object, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		body = []byte("{}")
	}
	// json.Valid is iterative and bounds the depth of nesting.
	if !utf8.Valid(body) || !json.Valid(body) {
		return object{}, failf(fsm.KindInvalid, "the body is not valid JSON in UTF-8")
	}
	o := object{errs: errs}
	if !o.fill(body) {
		return object{}, failf(fsm.KindInvalid, "the body must be a JSON object")
	}
	return o, nil
}

// fill takes the members of valid JSON apart and tells whether it is an object. A name that comes twice is an error:
// parsers disagree about which one counts.
func (o *object) fill(raw json.RawMessage) bool {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return false
	}
	o.members = map[string]json.RawMessage{}
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		name, isName := tok.(string)
		var value json.RawMessage
		if err != nil || !isName || dec.Decode(&value) != nil {
			return false // not reached: the JSON is valid
		}
		if seen[name] {
			o.errs.add(o.field(name), "is given more than once")
		}
		seen[name] = true
		if string(value) != "null" {
			o.members[name] = value
		}
	}
	return true
}

// field is a member's name as errors give it. A name that would be hard to read in a path is quoted.
func (o *object) field(name string) string {
	const longest = 128
	plain := name != "" && len(name) <= longest && !strings.ContainsFunc(name, func(r rune) bool {
		return !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-", r)
	})
	if plain {
		return o.prefix + name
	}
	if len(name) > longest {
		name = name[:longest]
	}
	return strings.TrimSuffix(o.prefix, ".") + "[" + strconv.QuoteToASCII(name) + "]"
}

func (o *object) has(name string) bool { _, ok := o.members[name]; return ok }

func (o *object) bad(name, format string, args ...any) { o.errs.add(o.field(name), format, args...) }

// str reads a string; false when there is none or it is not one.
func (o *object) str(name string) (string, bool) {
	raw, ok := o.members[name]
	if !ok {
		return "", false
	}
	s, ok := decodeString(raw)
	if !ok {
		o.bad(name, "must be a string")
	}
	return s, ok
}

// required reads a string that must be there and not be empty.
func (o *object) required(name string) (string, bool) {
	if !o.has(name) {
		o.bad(name, "is required")
		return "", false
	}
	s, ok := o.str(name)
	if ok && s == "" {
		o.bad(name, "must not be empty")
		return "", false
	}
	return s, ok
}

// boolean reads a boolean, false when omitted.
func (o *object) boolean(name string) bool {
	raw, ok := o.members[name]
	if !ok {
		return false
	}
	if s := string(raw); s != "true" && s != "false" {
		o.bad(name, "must be true or false")
	}
	return string(raw) == "true"
}

// integer reads an integer of a range, or def when omitted.
func (o *object) integer(name string, def, lowest, highest int64) int64 {
	raw, ok := o.members[name]
	if !ok {
		return def
	}
	n, ok := decodeInteger(raw)
	if !ok {
		o.bad(name, "must be an integer")
		return def
	}
	if n < lowest || n > highest {
		o.bad(name, "must be between %d and %d", lowest, highest)
		return def
	}
	return n
}

// list gives the elements of an array; more than most is an error.
func (o *object) list(name string, most int) []json.RawMessage {
	raw, ok := o.members[name]
	if !ok {
		return nil
	}
	var items []json.RawMessage
	if raw[0] != '[' || json.Unmarshal(raw, &items) != nil {
		o.bad(name, "must be an array")
		return nil
	}
	if len(items) > most {
		o.bad(name, "must have at most %d entries, has %d", most, len(items))
		return nil
	}
	return items
}

// strings gives the strings of an array; check, where not nil, is called for each with its field's name.
func (o *object) strings(name string, most int, check func(field, value string) string) []string {
	var out []string
	for i, raw := range o.list(name, most) {
		field := fmt.Sprintf("%s[%d]", o.field(name), i)
		s, ok := decodeString(raw)
		if !ok {
			o.errs.add(field, "must be a string")
			continue
		}
		if check != nil {
			s = check(field, s)
		}
		out = append(out, s)
	}
	return out
}

// child reads a nested object; nil when omitted or not an object.
func (o *object) child(name string) *object {
	raw, ok := o.members[name]
	if !ok {
		return nil
	}
	c := &object{prefix: o.field(name) + ".", errs: o.errs}
	if !c.fill(raw) {
		o.bad(name, "must be an object")
		return nil
	}
	return c
}

// names gives the names of an object's members in order, so that errors and copies do not depend on chance.
func (o *object) names() []string {
	out := make([]string, 0, len(o.members))
	for name := range o.members {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// env reads an object of environment variables.
func (o *object) env(name string) map[string]string {
	c := o.child(name)
	if c == nil {
		return nil
	}
	out := make(map[string]string, len(c.members))
	size := 0
	for _, key := range c.names() {
		value, ok := c.str(key)
		switch {
		case !ok:
		case key == "" || strings.ContainsAny(key, "=\x00"):
			c.bad(key, "is no name for an environment variable: it must not be empty or hold = or a zero byte")
		case strings.Contains(value, "\x00"):
			c.bad(key, "must not hold a zero byte")
		}
		out[key] = value
		size += len(key) + len(value) + 2
	}
	if size > maxEnvBytes {
		o.bad(name, "must be at most %d bytes together, is %d", maxEnvBytes, size)
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// maxEnvBytes bounds environment variables: they are part of a log entry, and those have to stay small.
const maxEnvBytes = 32 << 10

func decodeString(raw json.RawMessage) (string, bool) {
	var s string
	if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
		return "", false
	}
	return s, true
}

// decodeInteger accepts digits with an optional sign. A number beyond 64 bits is the nearest one, hence out of any
// range.
func decodeInteger(raw json.RawMessage) (int64, bool) {
	s := string(raw)
	digits := strings.TrimPrefix(s, "-")
	if digits == "" || strings.ContainsFunc(digits, func(r rune) bool { return r < '0' || r > '9' }) {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		if s[0] == '-' {
			return math.MinInt64, true
		}
		return math.MaxInt64, true
	}
	return n, true
}
