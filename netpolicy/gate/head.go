package gate

import (
	"bytes"
	"errors"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// A head is what has to be known of an HTTP/1 request's first lines. It is read strictly: what two readers could
// take apart in two ways is an error, so that whoever reads it next comes to the same.
type head struct {
	method  string
	host    string // the one Host, which the target's authority must agree with; as written, port and all
	length  int64  // of the body; -1 chunked
	upgrade bool   // asks for a WebSocket
}

// Faults of heads, as they are told to the guest: they hold nothing of the request.
var (
	errHeadLF       = errors.New("a line does not end in CR LF")
	errHeadLong     = errors.New("the request's head is too long")
	errHeadLine     = errors.New("the request line is malformed")
	errHeadTarget   = errors.New("the request's target is malformed")
	errHeadField    = errors.New("a header line is malformed")
	errHeadNoHost   = errors.New("the request has no Host")
	errHeadHosts    = errors.New("the request has more than one Host")
	errHeadHost     = errors.New("the request's Host is malformed")
	errHeadTwoHosts = errors.New("the request's target names another host than Host")
	errHeadLengths  = errors.New("the length of the request's body is ambiguous")
	errHeadCoding   = errors.New("the request's Transfer-Encoding is not chunked")
)

var crlf = []byte("\r\n")

// headEnd looks for the end of a head in b, of which the first from bytes were looked at before. It gives -1 when there
// is more to come.
func headEnd(b []byte, from int) (end int, err error) {
	for i := max(from-3, 0); i < len(b); i++ {
		switch {
		case b[i] == '\n' && (i == 0 || b[i-1] != '\r'), b[i] == '\r' && i+1 < len(b) && b[i+1] != '\n', b[i] == 0:
			return -1, errHeadLF
		case b[i] == '\n' && i >= 3 && bytes.Equal(b[i-3:i+1], []byte("\r\n\r\n")):
			return i + 1, nil
		}
	}
	return -1, nil
}

// parseHead reads a whole head, its last empty line included.
func parseHead(b []byte) (head, error) {
	line, rest, _ := bytes.Cut(b, crlf)
	h, target, version, err := requestLine(string(line))
	if err != nil {
		return h, err
	}
	var f fields
	for {
		line, rest, _ = bytes.Cut(rest, crlf)
		if len(line) == 0 {
			break
		}
		if err := f.line(string(line)); err != nil {
			return h, err
		}
	}
	if h.length, err = f.bodyLength(version); err != nil {
		return h, err
	}
	if h.host, err = f.authority(h.method, target); err != nil {
		return h, err
	}
	h.upgrade = h.method == "GET" && h.length == 0 && httpguts.HeaderValuesContainsToken(f.connection, "upgrade") &&
		len(f.upgrade) == 1 && strings.EqualFold(f.upgrade[0], "websocket")
	return h, nil
}

func requestLine(line string) (h head, target, version string, err error) {
	method, rest, ok := strings.Cut(line, " ")
	target, version, ok2 := strings.Cut(rest, " ")
	switch {
	case !ok, !ok2, !httpguts.ValidHeaderFieldName(method), target == "", version != "HTTP/1.1" && version != "HTTP/1.0":
		return h, "", "", errHeadLine
	case strings.ContainsFunc(target, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return h, "", "", errHeadTarget
	}
	return head{method: method}, target, version, nil
}

// fields are the header lines that matter here.
type fields struct {
	hosts, lengths, codings, connection, upgrade []string
}

func (f *fields) line(line string) error {
	name, value, ok := strings.Cut(line, ":")
	value = strings.Trim(value, " \t")
	// A name that ends in a space, or a line that begins with one (folding), is no field name.
	if !ok || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
		return errHeadField
	}
	switch strings.ToLower(name) {
	case "host":
		f.hosts = append(f.hosts, value)
	case "content-length":
		f.lengths = append(f.lengths, value)
	case "transfer-encoding":
		f.codings = append(f.codings, value)
	case "connection":
		f.connection = append(f.connection, value)
	case "upgrade":
		f.upgrade = append(f.upgrade, value)
	}
	return nil
}

func (f *fields) bodyLength(version string) (int64, error) {
	switch {
	case len(f.codings)+len(f.lengths) > 1:
		return 0, errHeadLengths
	case len(f.codings) == 1:
		if version == "HTTP/1.0" || !strings.EqualFold(f.codings[0], "chunked") {
			return 0, errHeadCoding
		}
		return -1, nil
	case len(f.lengths) == 1:
		n, err := strconv.ParseUint(f.lengths[0], 10, 63)
		if err != nil || f.lengths[0][0] == '+' {
			return 0, errHeadLengths
		}
		return int64(n), nil
	}
	return 0, nil
}

// authority gives whom the request is for. HTTP/1.0 without a Host says nobody.
func (f *fields) authority(method, target string) (string, error) {
	switch {
	case len(f.hosts) == 0:
		return "", errHeadNoHost
	case len(f.hosts) > 1:
		return "", errHeadHosts
	}
	host := f.hosts[0]
	if _, _, err := splitHost(host); err != nil {
		return "", err
	}
	switch {
	case method == "CONNECT":
		if !strings.EqualFold(target, host) && !strings.EqualFold(target, host+":443") {
			return "", errHeadTwoHosts
		}
	case target[0] == '/', target == "*" && method == "OPTIONS":
	default:
		u, err := url.Parse(target)
		if err != nil || u.Host == "" || u.User != nil || u.Opaque != "" || u.Scheme != "http" && u.Scheme != "https" {
			return "", errHeadTarget
		}
		if !strings.EqualFold(u.Host, host) {
			return "", errHeadTwoHosts
		}
	}
	return host, nil
}

// splitHost takes a Host or :authority apart. port is 0 where none is said.
func splitHost(host string) (name string, port uint16, err error) {
	name, digits, hasPort := strings.Cut(host, ":")
	if name == "" || strings.HasPrefix(host, "[") {
		if strings.HasPrefix(host, "[") && strings.Contains(host, "]") { // an IPv6 address, which is no name
			return host, 0, nil
		}
		return "", 0, errHeadHost
	}
	if !hasPort || digits == "" {
		return name, 0, nil
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || n == 0 || digits[0] == '+' {
		return "", 0, errHeadHost
	}
	return name, uint16(n), nil
}
