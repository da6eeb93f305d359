package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/errgroup"
)

// server is one side: its members, each a process, and which of them gets the
// load.
type server struct {
	name    string
	socket  string // of the member that gets the load
	members []*process
}

// process is a running member.
type process struct {
	member
	cmd    *exec.Cmd
	stdin  io.Closer
	stdout *bufio.Reader
	note   string // what it said at its end
}

// start starts this program again for each member of a side and waits until all
// are ready.
func start(ctx context.Context, name string, s settings) (v *server, err error) {
	v = &server{name: name}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.stop())
		}
	}()
	members, err := prepare(name, s)
	if err != nil {
		return v, err
	}
	for _, m := range members {
		p, err := m.start(ctx)
		if err != nil {
			return v, fmt.Errorf("start %s: %w", name, err)
		}
		v.members = append(v.members, p)
	}
	var group errgroup.Group
	for _, p := range v.members {
		group.Go(p.await)
	}
	if err := group.Wait(); err != nil {
		return v, err
	}
	v.socket, err = v.leader(ctx)
	return v, err
}

// prepare makes what the members of a side need before they start.
func prepare(name string, s settings) ([]member, error) {
	sockets, err := os.MkdirTemp("", "b")
	if err != nil {
		return nil, err
	}
	var peers []netip.AddrPort
	if s.members > 1 {
		if peers, err = freePorts(s.members); err != nil {
			return nil, err
		}
	}
	var out []member
	for i := range s.members {
		dir, err := filepath.Abs(filepath.Join(s.dir, name, memberName(i+1)))
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		m := member{side: name, number: i + 1, dir: dir, socket: filepath.Join(sockets, strconv.Itoa(i+1)), peers: peers}
		if name == "moot" && s.profile != "" {
			m.profile = s.profile + "." + memberName(m.number)
		}
		out = append(out, m)
	}
	return out, identify(out)
}

// start starts this program again as the member.
func (m member) start(ctx context.Context) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{"-serve", m.side, "-member", strconv.Itoa(m.number), "-dir", m.dir, "-socket", m.socket, "-profile", m.profile}
	for _, p := range m.peers {
		args = append(args, "-peer", p.String())
	}
	p := &process{member: m, cmd: exec.CommandContext(ctx, self, args...)}
	p.cmd.Stderr = os.Stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.stdout = bufio.NewReader(stdout)
	return p, p.cmd.Start()
}

// await waits until the member is ready.
func (p *process) await() error {
	if line, err := p.stdout.ReadString('\n'); err != nil || line != "ready\n" {
		return fmt.Errorf("start member %d of %s: it said %q", p.number, p.side, line)
	}
	return nil
}

// leader returns the socket of the member that etcd's clients do best to ask:
// the one that leads. Where all are equal it is the first.
func (v *server) leader(ctx context.Context) (string, error) {
	if v.name != "etcd" {
		return v.members[0].socket, nil
	}
	for _, p := range v.members {
		conn, err := dial(p.socket)
		if err != nil {
			return "", err
		}
		status, err := pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{})
		if err := errors.Join(err, conn.Close()); err != nil {
			return "", fmt.Errorf("ask %s who leads: %w", p.socket, err)
		}
		if status.Leader == status.Header.MemberId {
			return p.socket, nil
		}
	}
	return "", errors.New("etcd has no leader")
}

// stop ends all members. What the one with the load says last is its note.
func (v *server) stop() error {
	var errs []error
	for _, p := range v.members {
		errs = append(errs, p.stdin.Close())
		last, err := io.ReadAll(p.stdout)
		p.note = strings.TrimSpace(string(last))
		errs = append(errs, err, p.cmd.Wait(), os.RemoveAll(filepath.Dir(p.socket)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop %s: %w", v.name, err)
	}
	return nil
}

// cpu returns the processor time that all members have used.
func (v *server) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, p := range v.members {
		used, err := p.cpu()
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

func (p *process) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The fields after the command's name, which may hold anything but ")".
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	const userTime, systemTime, ticks = 11, 12, 100 // ticks a second, on every Linux Go runs on
	total := 0
	for _, i := range []int{userTime, systemTime} {
		n, err := strconv.Atoi(fields[i])
		if err != nil {
			return 0, err
		}
		total += n
	}
	return time.Duration(total) * time.Second / ticks, nil
}

// memoryMB returns how much memory a member holds, and how much of it is its
// own and no file's.
func (p *process) memoryMB() (resident, anonymous int, err error) {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	var size, pages, shared int
	if _, err := fmt.Sscan(string(statm), &size, &pages, &shared); err != nil {
		return 0, 0, err
	}
	each := syscall.Getpagesize()
	return pages * each >> 20, (pages - shared) * each >> 20, nil
}
