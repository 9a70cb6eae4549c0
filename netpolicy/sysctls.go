package netpolicy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// sysctl is a setting under /proc/sys/net. It is that of the network namespace of the thread that looks.
type sysctl struct{ name, value string }

// policySysctls are what a sandbox's namespace is set to once its rules are in force, before it has a link.
var policySysctls = []sysctl{
	{"ipv6/conf/all/disable_ipv6", "1"},
	{"ipv6/conf/default/disable_ipv6", "1"},
	{"ipv6/conf/all/forwarding", "0"},
	// Refusing needs forwarding too: without it the guest would wait for an answer that nobody sends.
	{"ipv4/ip_forward", "1"},
	// And refusing every time: by default only one packet a second would be told of. They go to the guest alone, and the
	// bound on all of a namespace's (icmp_msgs_per_sec) stays.
	{"ipv4/icmp_ratelimit", "0"},
	{"ipv4/conf/all/accept_redirects", "0"},
	{"ipv4/conf/default/accept_redirects", "0"},
	{"ipv4/conf/all/send_redirects", "0"},
	{"ipv4/conf/default/send_redirects", "0"},
	{"ipv4/conf/all/accept_source_route", "0"},
	{"ipv4/conf/default/accept_source_route", "0"},
	// A packet in the middle of a connection that the table does not know opens nothing.
	{"netfilter/nf_conntrack_tcp_loose", "0"},
	// An established connection that says nothing for two hours frees its entry, a flow of which one side is silent
	// soon: the table of a sandbox is small.
	{"netfilter/nf_conntrack_tcp_timeout_established", "7200"},
	{"netfilter/nf_conntrack_generic_timeout", "60"},
	// The bound on connections does not count those that are over, so that short ones may follow each other; their
	// entries must not pile up.
	{"netfilter/nf_conntrack_tcp_timeout_time_wait", "10"},
	{"netfilter/nf_conntrack_tcp_timeout_close_wait", "30"},
	{"netfilter/nf_conntrack_tcp_timeout_fin_wait", "30"},
}

func applySysctls(settings []sysctl) error {
	for _, s := range settings {
		err := os.WriteFile(filepath.Join("/proc/sys/net", s.name), []byte(s.value), 0o600)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(s.name, "ipv6/") {
			continue // a kernel without IPv6 has none to turn off
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sysctlDrift names the first setting that is not what it should be.
func sysctlDrift(settings []sysctl) error {
	for _, s := range settings {
		have, err := readSysctl(s.name)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(s.name, "ipv6/") {
			continue
		}
		if err != nil {
			return err
		}
		if have != s.value {
			return fmt.Errorf("%s is %s instead of %s", s.name, have, s.value)
		}
	}
	return nil
}

// readSysctl reads without os.File, which would have the poller look at each.
func readSysctl(name string) (string, error) {
	path := filepath.Join("/proc/sys/net", name)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // only read
	b := make([]byte, 64)
	n, err := unix.Read(fd, b)
	if err != nil {
		return "", &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return strings.TrimSpace(string(b[:n])), nil
}
