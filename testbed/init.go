package testbed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The names under which this program starts itself again.
const (
	initName     = "moot-testbed-init"
	registryName = "moot-testbed-registry"
	machineName  = "moot-testbed-machine"
)

// Reexec runs the role that this process was started for, when it is one of
// the package's own (a node's init, a registry, a machine), and does not return then. A
// program that makes clusters calls it first thing in main, or in TestMain.
func Reexec() {
	var err error
	switch os.Args[0] {
	case initName:
		err = runInit()
	case registryName:
		err = runRegistry()
	case machineName:
		err = runMachine()
	default:
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Args[0]+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// request is one question to a node's init, a line of JSON; the log for
// opStart comes with it as a file descriptor.
type request struct {
	Op   string   `json:"op"`
	Argv []string `json:"argv,omitempty"`
	Env  []string `json:"env,omitempty"`
}

const (
	opStatus = "status"
	opStart  = "start"
	opKill   = "kill"
	opStop   = "stop"
)

// daemonStatus is what init knows about the daemon, and the answer to every
// request.
type daemonStatus struct {
	Error   string    `json:"error,omitempty"`
	PID     int       `json:"pid,omitempty"` // inside the node, 0 when it does not run
	Ready   bool      `json:"ready"`         // it has said READY=1
	Text    string    `json:"text,omitempty"`
	Started time.Time `json:"started,omitzero"`
	Exit    string    `json:"exit,omitempty"` // how it ended last
}

// supervisor is the state of a node's init.
type supervisor struct {
	mu     sync.Mutex
	daemon daemonStatus
	gone   chan struct{} // closed when the running daemon has been reaped
}

// runInit is process 1 of a node: it builds the file tree, then reaps
// orphans and keeps the daemon, until it is killed.
func runInit() error {
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	var b bootConfig
	// Everything up to the end of the configuration waits for the parent to
	// have us on record: when it dies before, we read half a document.
	if err := json.NewDecoder(os.Stdin).Decode(&b); err != nil {
		return fmt.Errorf("read boot configuration: %w", err)
	}
	if err := mountRoot(b); err != nil {
		return err
	}
	ctl, err := net.ListenUnix("unix", &net.UnixAddr{Name: controlSock, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen for commands: %w", err)
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notifySock, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("listen for notifications: %w", err)
	}
	if err := passCredentials(notify); err != nil {
		return err
	}
	s := &supervisor{}
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, unix.SIGCHLD)
	// These goroutines live as long as the process.
	go s.reap(chld)
	go s.listenNotify(notify)
	if _, err := os.Stdout.WriteString("ok"); err != nil {
		return err
	}
	if err := detachStdio(); err != nil {
		return err
	}
	for {
		conn, err := ctl.AcceptUnix()
		if err != nil {
			return fmt.Errorf("accept command: %w", err)
		}
		go s.serve(conn)
	}
}

func passCredentials(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	return errors.Join(err, serr)
}

// detachStdio lets go of the pipes of the command that started us.
func detachStdio() error {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for _, fd := range []int{0, 1} {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return err
		}
	}
	return null.Close()
}

// reap collects every child that ends: the daemon, and all orphans of the
// node.
func (s *supervisor) reap(chld <-chan os.Signal) {
	for range chld {
		s.reapAll()
	}
}

func (s *supervisor) reapAll() {
	// Under the lock: a child started by start is known before it is waited
	// for here.
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if pid == s.daemon.PID {
			exit := fmt.Sprintf("exit status %d", ws.ExitStatus())
			if ws.Signaled() {
				exit = "signal: " + ws.Signal().String()
			}
			s.daemon = daemonStatus{Exit: exit, Started: s.daemon.Started}
			close(s.gone)
		}
	}
}

// listenNotify takes sd_notify messages, from the daemon's main process
// alone.
func (s *supervisor) listenNotify(c *net.UnixConn) {
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for {
		n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(msgs) == 0 {
			continue
		}
		cred, err := unix.ParseUnixCredentials(&msgs[0])
		if err != nil {
			continue
		}
		s.mu.Lock()
		if int(cred.Pid) == s.daemon.PID {
			for line := range strings.Lines(string(buf[:n])) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
				switch key {
				case "READY":
					s.daemon.Ready = value == "1"
				case "STOPPING":
					s.daemon.Ready = false
				case "STATUS":
					s.daemon.Text = value
				}
			}
		}
		s.mu.Unlock()
	}
}

// serve answers one command.
func (s *supervisor) serve(conn *net.UnixConn) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	buf, oob := make([]byte, 256<<10), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return
	}
	var logFile *os.File
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(msgs) == 1 {
		if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
			unix.CloseOnExec(fds[0])
			logFile = os.NewFile(uintptr(fds[0]), "log")
			defer func() { _ = logFile.Close() }()
		}
	}
	var r request
	err = json.Unmarshal(buf[:n], &r)
	if err == nil {
		err = s.handle(r, logFile)
	}
	s.mu.Lock()
	answer := s.daemon
	s.mu.Unlock()
	if err != nil {
		answer.Error = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(answer)
}

func (s *supervisor) handle(r request, logFile *os.File) error {
	switch r.Op {
	case opStatus:
		return nil
	case opStart:
		return s.start(r, logFile)
	case opKill:
		return s.end(unix.SIGKILL, 30*time.Second)
	case opStop:
		return s.end(unix.SIGTERM, 50*time.Second)
	}
	return fmt.Errorf("unknown command %q", r.Op)
}

// start runs the daemon in the moot leaf, in a session of its own.
func (s *supervisor) start(r request, logFile *os.File) error {
	if logFile == nil || len(r.Argv) == 0 {
		return errors.New("start the daemon: no log or no command")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.daemon.PID != 0 {
		return errors.New("the daemon runs already")
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	argv := append([]string{"/bin/sh", "-c", joinLeaf, "sh"}, r.Argv...)
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Dir:   "/",
		Env:   append(r.Env, "NOTIFY_SOCKET="+notifySock),
		Files: []uintptr{null.Fd(), logFile.Fd(), logFile.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	s.daemon = daemonStatus{PID: pid, Started: time.Now().UTC()}
	s.gone = make(chan struct{})
	return nil
}

// joinLeaf moves the shell into the daemon's cgroup leaf in every hierarchy
// and becomes the daemon.
const joinLeaf = `for f in /sys/fs/cgroup/` + leafMoot + `/cgroup.procs /sys/fs/cgroup/*/` + leafMoot + `/cgroup.procs; do
	if [ -e "$f" ]; then echo $$ >"$f" || exit 125; fi
done
exec "$@"`

// end sends the daemon, and nothing else, a signal to end by, and waits.
func (s *supervisor) end(sig unix.Signal, patience time.Duration) error {
	s.mu.Lock()
	pid, gone := s.daemon.PID, s.gone
	if pid == 0 {
		s.mu.Unlock()
		return errors.New("the daemon does not run")
	}
	// Only we can reap it, and not before the lock is released: the pid is
	// still its.
	err := unix.Kill(pid, sig)
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("end the daemon: %w", err)
	}
	select {
	case <-gone:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("end the daemon: it lives on %s after %s", patience, unix.SignalName(sig))
	}
}

// ask sends one request to the init of a node and returns its answer. The
// log file, when given, becomes the daemon's output.
func ask(init process, r request, logFile *os.File) (daemonStatus, error) {
	var st daemonStatus
	if !init.alive() {
		return st, errors.New("the node is off")
	}
	// The node's root, as seen through its init: no path of ours leads there.
	addr := &net.UnixAddr{Name: fmt.Sprintf("/proc/%d/root%s", init.PID, controlSock), Net: "unix"}
	conn, err := net.DialUnix("unix", nil, addr)
	if err != nil {
		return st, fmt.Errorf("ask the node's init: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return st, err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return st, err
	}
	var oob []byte
	if logFile != nil {
		oob = unix.UnixRights(int(logFile.Fd()))
	}
	if _, _, err := conn.WriteMsgUnix(b, oob, nil); err != nil {
		return st, fmt.Errorf("ask the node's init: %w", err)
	}
	answer, err := io.ReadAll(conn)
	if err == nil {
		err = json.Unmarshal(answer, &st)
	}
	if err != nil {
		return st, fmt.Errorf("ask the node's init: %w", err)
	}
	if st.Error != "" {
		return st, errors.New(st.Error)
	}
	return st, nil
}
