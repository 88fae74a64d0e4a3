package program

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// restartAfter is how long a program that has just died is left alone.
const restartAfter = time.Second

// server is a program that answers many calls by one process.
type server struct {
	o *Options

	mu      sync.Mutex
	pending map[string]chan reply // by request; closed without a reply when the process is gone
	process *process              // nil: none runs
	last    time.Time             // start of the last one
	closed  bool
}

// process is one run of the program.
type process struct {
	kill  context.CancelCauseFunc
	stdin *os.File
	write sync.Mutex
	why   error         // of its end, before pending is closed
	gone  chan struct{} // closed when nothing of it is left
}

// ask sends a line and waits for the reply to it.
func (s *server) ask(ctx context.Context, id string, line []byte) (reply, error) {
	p, err := s.running(ctx)
	if err != nil {
		return reply{}, err
	}
	answer := make(chan reply, 1)
	s.pending[id] = answer
	s.mu.Unlock()

	if err := p.send(ctx, line); err != nil {
		p.kill(fmt.Errorf("the program doesn't take requests: %w", err))
	}
	select {
	case a, ok := <-answer:
		if !ok {
			return reply{}, p.why
		}
		return a, nil
	case <-ctx.Done():
		// It would go on with what nobody waits for.
		p.kill(fmt.Errorf("the program was killed: %w", context.Cause(ctx)))
		if a, ok := <-answer; ok {
			return a, nil
		}
		return reply{}, p.why
	}
}

// send writes a line; a program that doesn't read stops nobody for longer than ctx.
func (p *process) send(ctx context.Context, line []byte) error {
	p.write.Lock()
	defer p.write.Unlock()
	deadline, _ := ctx.Deadline()
	if err := p.stdin.SetWriteDeadline(deadline); err != nil {
		return err
	}
	_, err := p.stdin.Write(line)
	return err
}

// running returns the process, after starting it where there is none, with mu held.
// One that died early is not started again before its time: that is waited for.
func (s *server) running(ctx context.Context) (*process, error) {
	for {
		s.mu.Lock()
		wait := restartAfter - time.Since(s.last)
		if s.closed || s.process != nil || wait <= 0 {
			break
		}
		s.mu.Unlock()
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("%w: it ended less than %v after its start: %w", errNotAsked, restartAfter, ctx.Err())
		}
	}
	p, err := s.start()
	if err != nil {
		s.mu.Unlock()
	}
	return p, err
}

// start returns the process, which it starts where there is none. mu is held.
func (s *server) start() (*process, error) {
	switch {
	case s.closed:
		return nil, fmt.Errorf("%w: %w", errNotAsked, errClosed)
	case s.process != nil:
		return s.process, nil
	}
	ctx, kill := context.WithCancelCause(context.Background())
	cmd := command(ctx, s.o, "serve")
	r, w, err := os.Pipe()
	if err != nil {
		kill(err)
		return nil, fmt.Errorf("%w: %w", errNotAsked, err)
	}
	log := &lines{log: s.o.Log}
	cmd.Stdin, cmd.Stderr = r, log
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	_ = r.Close()
	if err != nil {
		kill(err)
		_ = w.Close()
		return nil, fmt.Errorf("%w: %w", errNotAsked, err)
	}
	s.last = time.Now()
	s.process = &process{kill: kill, stdin: w, gone: make(chan struct{})}
	go s.watch(ctx, s.process, cmd, out, log)
	return s.process, nil
}

// watch hands replies out until the process is gone.
func (s *server) watch(ctx context.Context, p *process, cmd *exec.Cmd, out io.ReadCloser, log *lines) {
	defer close(p.gone)
	// Whoever has left the program's process group may hold its output open.
	defer context.AfterFunc(ctx, func() { _ = out.Close() })()
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, maxReply)
	for sc.Scan() {
		var a reply
		err := json.Unmarshal(sc.Bytes(), &a)
		if err == nil {
			err = s.hand(a)
		}
		if err != nil {
			p.kill(fmt.Errorf("the program's reply: %w: %.80q", err, sc.Bytes()))
			break
		}
	}
	if err := sc.Err(); err != nil && ctx.Err() == nil {
		p.kill(fmt.Errorf("the program's reply: %w", err))
	} else {
		p.kill(errors.New("the program ended"))
	}
	_ = cmd.Wait() // killed: how it ended says nothing
	_ = p.stdin.Close()
	log.flush()
	p.why = context.Cause(ctx)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.process = nil
	for id, c := range s.pending {
		close(c)
		delete(s.pending, id)
	}
}

// hand gives a reply to who waits for it.
func (s *server) hand(a reply) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.pending[a.ID]
	if !ok {
		return fmt.Errorf("id %.80q is of no request", a.ID)
	}
	if err := a.check(a.ID); err != nil {
		return err
	}
	delete(s.pending, a.ID)
	c <- a
	return nil
}

// end kills the process, for good, and waits until it is gone.
func (s *server) end(why error) {
	s.mu.Lock()
	s.closed = true
	p := s.process
	s.mu.Unlock()
	if p != nil {
		p.kill(why)
		<-p.gone
	}
}
