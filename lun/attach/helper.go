package attach

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fuse"
	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/lun/process"
)

// Command is the hidden command by which the program becomes a helper.
const Command = "attach-helper"

// Opener opens what a Request's Open describes, in the helper. ctx ends with
// the launcher's patience; what is opened lives on. A read-only attachment
// never writes to it.
type Opener func(ctx context.Context, what json.RawMessage, writable bool) (Opened, error)

// Opened is a device, and how it ends: Close makes what was written stable.
type Opened struct {
	lun.Device
	io.Closer
}

// spec is what a helper is told, as one line of JSON on its standard input.
type spec struct {
	Open     json.RawMessage `json:"open"`
	Writable bool            `json:"writable"`
	// Mount is the regular file to mount on. "": serve NBD on descriptor 3.
	Mount   string        `json:"mount,omitempty"`
	Timeout time.Duration `json:"timeout"`
}

// reply is its answer, one line of JSON.
type reply struct {
	Size       int64  `json:"size"`
	Block      int    `json:"block"`
	Connection uint32 `json:"connection,omitempty"`
	Warning    string `json:"warning,omitempty"`
	Error      *told  `json:"error,omitempty"`
}

// told is an error that crosses from the helper to its launcher.
type told struct {
	Text string `json:"text"`
	Name string `json:"kind,omitempty"`
	Next string `json:"hint,omitempty"`
}

func (t *told) Error() string { return t.Text }

// Kind is the word that the Opener's error gave by a method of that name.
func (t *told) Kind() string { return t.Name }

// Hint is what to try next.
func (t *told) Hint() string { return t.Next }

func tell(err error) *told {
	t := &told{Text: err.Error()}
	if k := (interface{ Kind() string })(nil); errors.As(err, &k) {
		t.Name = k.Kind()
	}
	if h := (interface{ Hint() string })(nil); errors.As(err, &h) {
		t.Next = h.Hint()
	}
	return t
}

// keepWord is what a launcher says when all is recorded. A helper whose input
// ends without it undoes what it did.
const keepWord = "keep"

// Main is a helper's life: args are those after Command. It returns the exit
// status.
func Main(args []string, in io.Reader, out, errs io.Writer, open Opener) int {
	log := slog.New(slog.NewTextHandler(errs, nil))
	var err error
	switch {
	case len(args) == 3 && args[0] == watchWord:
		err = watch(args[1], args[2])
	case len(args) == 0:
		err = help(in, out, log, open)
	default:
		err = errors.New("it is started by `cleave lun attach`")
	}
	if err != nil {
		log.Error("attachment", "error", err)
		return 1
	}
	return 0
}

// flush marks every thread of the process as one that I/O depends on
// (PR_SET_IO_FLUSHER): the kernel then takes no memory for it by way of I/O that
// might have to go through this very process. The mark is a thread's; an exec
// passes it on to all that there will be. It needs CAP_SYS_RESOURCE, which root
// in a container may lack: errFlusher then.
func flush() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	set, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w (PR_SET_IO_FLUSHER): when this host is short of memory, a writable device may hang", errFlusher)
	}
	if err != nil {
		return fmt.Errorf("PR_GET_IO_FLUSHER: %w", err)
	}
	if set == 1 {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_IO_FLUSHER: %w", err)
	}
	return fmt.Errorf("starting again: %w", syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
}

var errFlusher = errors.New("the process behind it can't be marked as one that I/O depends on")

func help(in io.Reader, out io.Writer, log *slog.Logger, open Opener) error {
	var warning string
	if err := flush(); errors.Is(err, errFlusher) {
		warning = err.Error()
	} else if err != nil {
		return err
	}
	// It is I/O to many: the last to go when memory is short, if we may say so.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0)
	answer := func(r reply) error { return json.NewEncoder(out).Encode(r) }
	lines := bufio.NewReader(in)
	var s spec
	if line, err := lines.ReadBytes('\n'); err != nil {
		return fmt.Errorf("reading what to attach: %w", err)
	} else if err := json.Unmarshal(line, &s); err != nil {
		return fmt.Errorf("reading what to attach: %w", err)
	}
	orphaned, kept := make(chan struct{}), make(chan struct{})
	go func() {
		if word, _ := lines.ReadString('\n'); word == keepWord+"\n" {
			close(kept)
			return
		}
		close(orphaned)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), s.Timeout)
	defer cancel()
	go func() {
		select {
		case <-orphaned:
			cancel()
		case <-kept:
		}
	}()
	d, err := open(ctx, s.Open, s.Writable)
	if err != nil {
		return errors.Join(answer(reply{Error: tell(err)}), err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			log.Error("closing the device", "error", err)
		}
	}()
	block := 512
	if b, ok := d.Device.(lun.Blocker); ok {
		block, _ = b.Blocks()
	}
	r := reply{Size: d.Size(), Block: block}
	if s.Writable {
		r.Warning = warning
	}
	if r.Size <= 0 || r.Size%int64(block) != 0 || block < 512 || block > os.Getpagesize() {
		err := fmt.Errorf("it has %d bytes in blocks of %d: a block device has whole blocks of 512 to %d bytes, and one at least", r.Size, block, os.Getpagesize())
		return errors.Join(answer(reply{Error: tell(err)}), err)
	}
	if s.Mount != "" {
		err = serveFUSE(s, d, &r, answer, orphaned, log)
	} else {
		err = serveNBD(s, d, r, answer, orphaned, log)
	}
	return err
}

func serveFUSE(s spec, d lun.Device, r *reply, answer func(reply) error, orphaned <-chan struct{}, log *slog.Logger) error {
	m, err := fuse.NewMount(s.Mount, !s.Writable)
	if err == nil {
		err = startWatch(m.Connection)
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}
	if err != nil {
		return errors.Join(answer(reply{Error: tell(err)}), err)
	}
	r.Connection = m.Connection
	over := make(chan error, 1)
	go func() { over <- m.Serve(d, fuse.Options{Log: log}) }()
	if err := answer(*r); err != nil {
		return errors.Join(err, m.Close())
	}
	select {
	case err = <-over:
	case <-orphaned:
		// The end of this process ends the connection. The mount stays: by its
		// path Detach finds what stands on it.
		return errors.New("whoever attached it died before it was done")
	}
	if errors.Is(err, fuse.ErrHung) {
		// Closing the device would wait for it as well.
		log.Error("attachment", "error", err)
		unix.Exit(1)
	}
	return err
}

// serveNBD serves one connection, which a launcher has made a socket pair for.
func serveNBD(s spec, d lun.Device, r reply, answer func(reply) error, orphaned <-chan struct{}, log *slog.Logger) error {
	f := os.NewFile(3, "nbd")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return errors.Join(answer(reply{Error: tell(err)}), err)
	}
	defer conn.Close()
	server, err := nbd.NewServer(nbd.ServerOptions{Log: log}, nbd.Export{Device: d, ReadOnly: !s.Writable})
	if err != nil {
		return errors.Join(answer(reply{Error: tell(err)}), err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-orphaned:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := answer(r); err != nil {
		return err
	}
	return server.ServeConn(ctx, conn)
}

const watchWord = "watch"

// startWatch starts the process that aborts the connection when this one is
// killed.
func startWatch(connection uint32) error {
	me, err := process.Of(os.Getpid())
	if err != nil {
		return err
	}
	abort, err := fuse.Aborter(connection)
	if err != nil {
		return err
	}
	defer abort.Close()
	cmd := exec.Command("/proc/self/exe", Command, watchWord, strconv.Itoa(me.PID), strconv.FormatUint(me.Start, 10))
	cmd.Args[0], cmd.ExtraFiles = os.Args[0], []*os.File{abort}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the watcher: %w", err)
	}
	go func() { _ = cmd.Wait() }() // reaped
	return nil
}

// watch waits until a helper is gone or dying, and aborts its connection, which
// is descriptor 3: where a thread of the helper can't end, waiting for
// something itself, the kernel would keep the connection, and whoever reads
// from it would wait with it.
func watch(pid, start string) error {
	abort := os.NewFile(3, "abort")
	defer abort.Close()
	var p process.Process
	var err error
	if p.PID, err = strconv.Atoi(pid); err != nil {
		return err
	}
	if p.Start, err = strconv.ParseUint(start, 10, 64); err != nil {
		return err
	}
	if p.Boot, err = process.BootID(); err != nil {
		return err
	}
	fd, err := p.Open()
	for err == nil && !dying(p) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		_, _ = unix.Poll(poll, 1000)
	}
	_, err = abort.WriteString("1")
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTCONN) {
		return nil
	}
	return err
}
