package guard

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/orchestrator/writer/qemu/qmp"
)

// record is one line from the guard to its launcher. It is a promise between
// two copies of the same binary, and no more stable than that.
type record struct {
	Stopping bool           `json:"stopping,omitempty"` // the VM runs and is about to be stopped
	Paused   *pausedRecord  `json:"paused,omitempty"`
	Resumed  *resumedRecord `json:"resumed,omitempty"`
	Error    string         `json:"error,omitempty"`
	Busy     bool           `json:"busy,omitempty"` // with Error: the socket serves another client
	Gone     bool           `json:"gone,omitempty"` // with Error: there is no QEMU
}

type pausedRecord struct {
	From   time.Time `json:"from"`   // before QEMU was asked to stop
	Status string    `json:"status"` // QEMU's run state before; only "running" is paused
	Held   bool      `json:"held"`   // the VM was running and stands now
}

type resumedRecord struct {
	For time.Duration `json:"for"` // from before stop to after running, by the monotonic clock
	By  cause         `json:"by"`
}

// cause says why a pause ended.
type cause string

const (
	byLauncher cause = "launcher"
	byOrphaned cause = "launcher is gone"
	byDeadline cause = "deadline"
	byOther    cause = "another client" // somebody else let the VM run: the pause did not hold
	byEnd      cause = "end of the VM"  // QEMU ended, or the guest was shut down
)

const resumeWord = "resume"

// Main is the guard process: args are what follow the command's name, in and
// out its standard input and output. It returns the exit status. It changes
// what the process does about signals for good, so it is only for a process
// that is nothing but a guard.
func Main(args []string, in io.Reader, out io.Writer) int {
	// SIGPIPE too: a launcher that is gone must not take the guard with it
	// when it reports.
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	// Best effort, both: out of memory is no reason to leave a VM paused (needs
	// privilege), and no file system is held.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	_ = os.Chdir("/")

	fs := flag.NewFlagSet("guard", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	path := fs.String("qmp", "", "QMP socket")
	limit := fs.Duration("limit", 0, "longest pause")
	if err := fs.Parse(args); err != nil || *path == "" || *limit <= 0 || fs.NArg() > 0 {
		reporter(out)(record{Error: "guard: want --qmp SOCKET --limit DURATION"})
		return 2
	}
	if run(*path, *limit, in, out) != nil {
		return 1
	}
	return 0
}

// reporter tells the launcher. One that does not listen changes nothing here.
func reporter(out io.Writer) func(record) {
	enc := json.NewEncoder(out)
	return func(r record) { _ = enc.Encode(r) }
}

// run pauses and resumes. It returns nil if the VM was paused and runs again, or
// was left as it was.
func run(path string, limit time.Duration, in io.Reader, out io.Writer) error {
	report := reporter(out)
	asked := listen(in)
	resumedByOther := make(chan struct{}, 1)
	var armed atomic.Bool // the VM stands: a RESUME from then on is somebody else's
	events := func(e qmp.Event) {
		if e.Name == "RESUME" && armed.Load() {
			select {
			case resumedByOther <- struct{}{}:
			default:
			}
		}
	}

	// The limit counts from before the VM is stopped and also bounds getting there.
	from := time.Now()
	ctx, cancel := context.WithDeadlineCause(context.Background(), from.Add(limit), errors.New("the pause's limit has passed"))
	defer cancel()
	fail := func(err error) error {
		report(record{Error: err.Error(), Busy: errors.Is(err, qmp.ErrBusy), Gone: errors.Is(err, qmp.ErrAbsent)})
		return err
	}
	c, err := qmp.Dial(ctx, path, events)
	if err != nil {
		return fail(err)
	}
	defer func() { c.Close() }()
	before, err := c.QueryStatus(ctx)
	if err != nil {
		return fail(err)
	}
	if !before.Running {
		report(record{Paused: &pausedRecord{From: from, Status: before.Status}})
		return nil
	}

	report(record{Stopping: true})
	from = time.Now()
	// From here on only letRun may end this function: QEMU may have stopped the
	// VM whether or not it answers.
	err = c.Stop(ctx)
	var now qmp.Status
	if err == nil {
		now, err = c.QueryStatus(ctx)
	}
	if err == nil && now.Running {
		err = errors.New("QEMU says that it stopped the VM, and that it runs")
	}
	if err != nil {
		if _, ended := letRun(c, path); ended != nil {
			err = fmt.Errorf("%w; %w", err, ended)
		}
		return fail(err)
	}
	armed.Store(true)
	report(record{Paused: &pausedRecord{From: from, Status: before.Status, Held: true}})

	why := byLauncher
	select {
	case word, ok := <-asked:
		if !ok || word != resumeWord {
			why = byOrphaned
		}
	case <-ctx.Done():
		why = byDeadline
	case <-resumedByOther:
		why = byOther
	case <-c.Done(): // letRun finds out whether QEMU is gone
	}
	select { // the deadline and a foreign resume are worth more than what came beside them
	case <-resumedByOther:
		why = byOther
	default:
		if ctx.Err() != nil {
			why = byDeadline
		}
	}
	armed.Store(false)
	found, err := letRun(c, path)
	switch {
	case err != nil:
		why = byEnd
	case found && why != byOther:
		why = byOther // it ran before we let it
	}
	report(record{Resumed: &resumedRecord{For: time.Since(from), By: why}})
	return nil
}

// errEnded says that there is no VM left to run.
var errEnded = errors.New("the VM has ended")

// letRun has the VM run, by c or by new connections, and tries for ever. It
// reports whether the VM was found running before any cont of its own. Its only
// error is errEnded.
func letRun(c *qmp.Conn, path string) (foundRunning bool, err error) {
	const answer = 5 * time.Second // QEMU's main loop may be slow; cont is safe to repeat
	told := false
	wait := 20 * time.Millisecond
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	for ; ; wait = min(2*wait, time.Second) {
		ctx, cancel := context.WithTimeout(context.Background(), answer)
		if c == nil || c.Err() != nil {
			var err error
			if c, err = qmp.Dial(ctx, path, nil); err != nil {
				c = nil
				cancel()
				if errors.Is(err, qmp.ErrAbsent) {
					return false, errEnded
				}
				time.Sleep(wait)
				continue
			}
		}
		s, err := c.QueryStatus(ctx)
		switch {
		case err == nil && s.Running:
			cancel()
			return !told, nil
		case err == nil && (s.Status == "shutdown" || s.Status == "internal-error"):
			// Only a reset leads out of these (QEMU: runstate_needs_reset).
			cancel()
			return false, errEnded
		case err == nil:
			told = true
			if c.Cont(ctx) == nil {
				wait = time.Millisecond // ask at once whether it runs
			}
		}
		cancel()
		if ctx.Err() != nil { // this connection may be stuck; take another
			c.Close()
			c = nil
		}
		time.Sleep(wait)
	}
}

// listen passes the lines of in on; the channel is closed when in ends.
func listen(in io.Reader) <-chan string {
	asked := make(chan string, 1)
	go func() {
		defer close(asked)
		s := bufio.NewScanner(io.LimitReader(in, 4096))
		if s.Scan() {
			asked <- s.Text()
		}
	}()
	return asked
}
