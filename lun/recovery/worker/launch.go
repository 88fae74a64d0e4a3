package worker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/lun/process"
)

// child is a worker as its launcher sees it.
type child struct {
	cmd    *exec.Cmd
	stdin  *os.File // the lifeline
	stdout *os.File
	lines  *bufio.Reader // of stdout
	tail   *tail

	stop  context.CancelFunc // ends the serving of devices
	bases sync.WaitGroup     // who serve them
	lends bool               // devices are lent where they can be, not served from here
	lent  []process.Process  // who serve those
	over  chan struct{}      // closed when the process is reaped …
	err   error              // … with this
}

// launch starts a process in a mode and sends it its configuration. extra are
// the descriptors, from 3 on, before those of the sources; launch closes them
// all on this side. id is the worker's user, 0 for ours.
func launch(m mode, s *Spec, c config, id uint32, extra []*os.File) (_ *child, err error) {
	p := &child{tail: &tail{also: s.Stderr}, lends: s.Detachable, over: make(chan struct{})}
	files := extra
	defer func() {
		for _, f := range files {
			f.Close()
		}
		if err != nil {
			p.giveBack()
		}
		if err != nil {
			err = fmt.Errorf("starting a recovery worker: %w", err)
		}
	}()
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	defer func() {
		if err != nil {
			stop()
			p.bases.Wait()
		}
	}()

	for _, src := range s.Sources {
		cs := configSource{Name: src.Name, FD: 3 + len(files)}
		f, err := p.hand(ctx, src, &cs, m == modeInPlace, func() {})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", src.Name, err)
		}
		files = append(files, f)
		c.Sources = append(c.Sources, cs)
	}
	if s.resolves() {
		conn, theirs, err := packets()
		if err != nil {
			return nil, err
		}
		c.FilesFD = 3 + len(files)
		files = append(files, theirs)
		p.bases.Go(func() { p.serveFiles(ctx, s, conn, m == modeInPlace) })
	}
	c.Memory, c.Containers, c.Snapshot, c.Places = s.Limits.Memory, s.Containers, s.ContainerSnapshot, s.Places
	line, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if len(line) >= maxConfig {
		return nil, fmt.Errorf("its configuration is %d bytes, at most %d", len(line), maxConfig)
	}

	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	files = append(files, inR)
	outR, outW, err := os.Pipe()
	if err != nil {
		inW.Close()
		return nil, err
	}
	command := func(spaces uintptr) *exec.Cmd {
		cmd := exec.Command(s.Exe, arguments(m, s)...)
		cmd.ExtraFiles = files[:len(files)-1]
		cmd.Stdin, cmd.Stdout, cmd.Stderr = inR, outW, p.tail
		if s.Detachable && s.Stderr != nil {
			cmd.Stderr = s.Stderr // a pipe would end with this process
		}
		cmd.Env = []string{"GOTRACEBACK=single", "LANG=C.UTF-8"}
		cmd.Dir = "/"
		cmd.SysProcAttr = attributes(id, spaces, s.Detachable)
		return cmd
	}
	p.stdin, p.stdout, p.lines = inW, outR, bufio.NewReader(outR)

	p.cmd = command(syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC)
	if err = p.start(); errors.Is(err, syscall.EPERM) {
		// Root of a container often may not make namespaces.
		p.cmd = command(0)
		err = p.start()
	}
	outW.Close()
	if err != nil {
		inW.Close()
		outR.Close()
		return nil, err
	}
	// The pipe holds less than the largest configuration: a worker that does
	// not read is killed by the caller's limit, which unblocks this write.
	go func() {
		if _, err := inW.Write(append(line, '\n')); err != nil {
			inW.Close()
		}
	}()
	return p, nil
}

// start runs the process on a thread of its own: the kernel's parent death
// signal comes when the thread ends that started the child.
func (p *child) start() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with us
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = p.cmd.Wait()
		p.stop()
		close(p.over)
	}()
	return <-started
}

// hand makes the descriptor by which a worker reads a source, and writes it if it
// may. It calls done when the source's device is needed no more.
func (p *child) hand(ctx context.Context, src Source, cs *configSource, writable bool, done func()) (_ *os.File, err error) {
	cs.Writable = writable
	if b, ok := src.Device.(lun.Blocker); ok {
		cs.Logical, cs.Physical = b.Blocks()
	}
	if f, ok := src.Device.(lun.Filer); ok {
		defer done()
		// Opened anew, so that the worker's descriptor can't be written to
		// whatever ours can.
		flags := os.O_RDONLY
		if writable {
			flags = os.O_RDWR
		}
		return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.File().Fd()), flags, 0)
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "nbd"), os.NewFile(uintptr(pair[1]), "nbd")
	if l, ok := src.Device.(lun.Lender); ok && p.lends && !writable {
		defer done()
		defer ours.Close()
		if err := p.borrow(ctx, l, ours); err != nil {
			theirs.Close()
			return nil, err
		}
		cs.NBD = true
		return theirs, nil
	}
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, err
	}
	server, err := nbd.NewServer(nbd.ServerOptions{}, nbd.Export{Device: src.Device, ReadOnly: !writable})
	if err != nil {
		conn.Close()
		theirs.Close()
		return nil, err
	}
	p.bases.Go(func() {
		defer done()
		_ = server.ServeConn(ctx, conn) // its end is the worker's I/O error
	})
	cs.NBD = true
	return theirs, nil
}

// borrow has a device served at the other end of conn by a process of its own.
func (p *child) borrow(ctx context.Context, l lun.Lender, conn *os.File) error {
	pid, err := l.Lend(ctx, conn)
	if err != nil {
		return err
	}
	of, err := process.Of(pid)
	if err != nil {
		return fmt.Errorf("its lender: %w", err)
	}
	p.lent = append(p.lent, of)
	return nil
}

// giveBack waits for the lenders of a worker that is gone.
func (p *child) giveBack() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*leaving)
	defer cancel()
	_ = over(ctx, p.lent) // nobody is left whom they serve
}

func arguments(m mode, s *Spec) []string {
	cpu := int64(0)
	if m == modeInspect || m == modeCheck || m == modeContainers || m == modeConfined {
		cpu = max(1, int64(s.Limits.CPU/time.Second))
	}
	args := append([]string{}, s.Args...)
	return append(args, string(m), "confine",
		strconv.FormatInt(s.Limits.Memory, 10), strconv.Itoa(s.Limits.Files),
		strconv.Itoa(s.Limits.Tasks), strconv.FormatInt(cpu, 10))
}

// attributes are a session of its own, so that signals of a terminal go to the
// launcher alone, and, for root, a user and name spaces of its own.
func attributes(id uint32, spaces uintptr, detachable bool) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setsid: true}
	if !detachable {
		a.Pdeathsig = syscall.SIGKILL
	}
	if id != 0 {
		a.Credential = &syscall.Credential{Uid: id, Gid: id}
		a.Cloneflags = spaces
	}
	return a
}

// The range of users that systemd keeps for those made at run time (systemd's
// UIDS-GIDS document).
const firstID, lastID = 61184, 65519

// ownID picks a user and group for a worker that no process has; 0 where this
// process may not choose.
func ownID() uint32 {
	if os.Geteuid() != 0 {
		return 0
	}
	taken := map[uint32]bool{}
	if dirs, err := os.ReadDir("/proc"); err == nil {
		for _, d := range dirs {
			if fi, err := d.Info(); err == nil {
				if st, ok := fi.Sys().(*syscall.Stat_t); ok {
					taken[st.Uid] = true
				}
			}
		}
	}
	for {
		if id := firstID + rand.Uint32N(lastID-firstID+1); !taken[id] {
			return id
		}
	}
}

// listen reads the worker's next line, of most workers the only one. It kills
// the worker on everything but a good answer.
func (p *child) listen(ctx context.Context, limit time.Duration) (*reply, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	stop := context.AfterFunc(ctx, p.kill)
	defer stop()
	line, err := readLine(p.lines, maxReply+1)
	switch {
	case ctx.Err() != nil:
		p.end()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, fmt.Errorf("recovery worker did not answer within %v and was killed: %w", limit, ctx.Err())
		}
		return nil, ctx.Err()
	case len(line) > maxReply:
		p.end()
		return nil, fmt.Errorf("recovery worker said more than %d bytes and was killed", maxReply)
	case err != nil:
		p.end()
		return nil, p.death()
	}
	var rep reply
	if err := json.Unmarshal(line, &rep); err != nil {
		p.end()
		return nil, fmt.Errorf("recovery worker's answer makes no sense: %w", err)
	}
	if rep.Error != nil {
		p.end()
		return nil, rep.Error
	}
	return &rep, nil
}

// readLine reads up to the end of a line, or of max bytes.
func readLine(r *bufio.Reader, max int) ([]byte, error) {
	var line []byte
	for {
		b, err := r.ReadSlice('\n')
		line = append(line, b[:min(len(b), max-len(line))]...)
		if !errors.Is(err, bufio.ErrBufferFull) || len(line) == max {
			return line, err
		}
	}
}

func (p *child) kill() { _ = p.cmd.Process.Kill() }

// end kills the process, if it is there, and waits for everything of it.
func (p *child) end() {
	p.kill()
	<-p.over
	p.bases.Wait()
	p.giveBack()
	p.stdin.Close()
	p.stdout.Close()
}

// death is the error of a process that ended without being asked to.
func (p *child) death() error {
	why := "ended"
	var ee *exec.ExitError
	if errors.As(p.err, &ee) {
		why = ee.ProcessState.String()
	}
	if said := p.tail.cause(); said != "" {
		return fmt.Errorf("recovery worker died (%s): %s", why, said)
	}
	return fmt.Errorf("recovery worker died (%s)", why)
}

// tail keeps the beginning of what a worker writes to standard error: Go's
// runtime says the cause first and where it was after.
type tail struct {
	also *os.File
	mu   sync.Mutex
	b    []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b[:min(len(b), 16<<10-len(t.b))]...)
	if t.also != nil {
		_, _ = t.also.Write(b) // its loss is not the worker's
	}
	return len(b), nil
}

// cause is the line that says why, without the stack.
func (t *tail) cause() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := ""
	for line := range bytes.Lines(t.b) {
		l := strings.TrimSpace(string(line))
		for _, p := range []string{"panic: ", "fatal error: ", "runtime: out of memory"} {
			if strings.HasPrefix(l, p) {
				return clean(l)
			}
		}
		if first == "" {
			first = l
		}
	}
	return clean(first)
}
