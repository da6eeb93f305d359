package dns

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// HostResolvConfs lists the files that may hold the host's nameservers, best
// first. With systemd-resolved /etc/resolv.conf names only its stub on the
// loopback interface, and the real nameservers are in the second file.
func HostResolvConfs() []string {
	return []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}
}

// nameservers reads the nameservers out of a resolver configuration.
func nameservers(conf []byte) []netip.Addr {
	var out []netip.Addr
	scanner := bufio.NewScanner(bytes.NewReader(conf))
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if ip, err := netip.ParseAddr(fields[1]); err == nil {
			out = append(out, ip)
		}
	}
	return out
}

// resolver is a resolver configuration that was read.
type resolver struct {
	path    string
	servers []netip.Addr
	partly  bool // not all nameservers in it are to be asked
}

// pickResolver chooses among files: the first with a nameserver that is not on
// the loopback interface, else the first with any. In the second case pods cannot
// use it, only the host itself. With no nameserver at all it returns false. The
// addresses in own are no nameservers: a host that resolves the cluster's names
// has them among its own, and what they ask would come back to them.
func pickResolver(files []string, own []netip.Addr) (r resolver, ok bool) {
	for _, path := range files {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		all := nameservers(raw)
		found := resolver{path: path, servers: slices.DeleteFunc(slices.Clone(all), func(a netip.Addr) bool { return slices.Contains(own, a.Unmap()) })}
		found.partly = len(found.servers) < len(all)
		if len(found.servers) == 0 {
			continue
		}
		if reachableFromPods(found.servers) {
			return found, true
		}
		if !ok {
			r, ok = found, true
		}
	}
	return r, ok
}

// upstream is the configuration as the directive forward takes it: the file, or
// the nameservers in it that are to be asked.
func (r resolver) upstream() []string {
	if !r.partly {
		return []string{r.path}
	}
	out := make([]string, 0, len(r.servers))
	for _, a := range r.servers {
		out = append(out, a.String())
	}
	return out
}

func reachableFromPods(servers []netip.Addr) bool {
	for _, s := range servers {
		if s.IsLoopback() {
			return false
		}
	}
	return true
}

// PodResolvConf returns the resolver configuration for pods that use the host's
// (dnsPolicy Default): a file of the host if pods can reach the nameservers in
// it, else one that it writes below dir and that names the cluster's own DNS,
// which asks the host's resolver on their behalf.
func PodResolvConf(files []string, dir string, clusterDNS netip.Addr) (string, error) {
	r, ok := pickResolver(files, nil)
	if ok && reachableFromPods(r.servers) {
		return r.path, nil
	}
	path := filepath.Join(dir, "resolv.conf")
	if err := writeFile(path, fmt.Appendf(nil, "nameserver %s\n", clusterDNS)); err != nil {
		return "", fmt.Errorf("write resolver configuration for pods: %w", err)
	}
	return path, nil
}

// writeFile makes path hold data, all of it or what was there before.
func writeFile(path string, data []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}
