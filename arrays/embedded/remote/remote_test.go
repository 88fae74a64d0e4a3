package remote

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/arrays/driver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answering is a data plane that reads a request and then does what it is told
// with the connection.
func answering(t *testing.T, do func(net.Conn)) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				io.Copy(io.Discard, r.Body)
				do(conn)
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return New(socket)
}

func say(text string) func(net.Conn) {
	return func(c net.Conn) { io.WriteString(c, text) }
}

// TestLostReplies: after a change was asked and not answered nobody knows; a
// question may be asked again.
func TestLostReplies(t *testing.T) {
	for name, do := range map[string]func(net.Conn){
		"hangs up":       func(net.Conn) {},
		"not HTTP":       say("SSH-2.0-OpenSSH_9.2\r\n"),
		"half an answer": say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[{"),
		"not JSON":       say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n<>"),
	} {
		t.Run(name, func(t *testing.T) {
			c := answering(t, do)
			for what, tc := range map[string]struct {
				err  error
				want driver.Kind
			}{
				"Split":   {two(c.Split(t.Context(), "t", "v")), driver.OutcomeUnknown},
				"Expose":  {two(c.Expose(t.Context(), "s", driver.ExposeOptions{})), driver.OutcomeUnknown},
				"Publish": {two(c.Publish(t.Context(), Publication{})), driver.OutcomeUnknown},
				"Commit":  {two(c.Commit(t.Context(), "t")), driver.OutcomeUnknown},
				"Revert":  {two(c.Revert(t.Context(), "s")), driver.OutcomeUnknown},
				"Reverse": {two(c.Reverse(t.Context(), "s")), driver.OutcomeUnknown},
				"Repair":  {two(c.RepairVolume(t.Context(), "v")), driver.OutcomeUnknown},
				"Break":   {two(c.Break(t.Context(), "s", "n")), driver.OutcomeUnknown},
				"Changes": {two(c.Changes(t.Context(), "v", "s", "")), driver.Unreachable},
				"Resolve": {two(c.Resolve(t.Context(), driver.Disk{})), driver.Unreachable},
				"Lookup":  {two(c.Lookup(t.Context(), "t")), driver.Unreachable},
				"Open":    {two(c.Open(t.Context(), "s")), driver.Unreachable},
				"Status":  {two(c.Status(t.Context())), driver.Unreachable},
			} {
				if c.Kind(tc.err) != tc.want {
					t.Errorf("%s: %v: kind %v, want %v", what, tc.err, c.Kind(tc.err), tc.want)
				}
				if tc.err == nil || strings.Contains(tc.err.Error(), "\n") {
					t.Errorf("%s: %v", what, tc.err)
				}
			}
		})
	}
}

func TestNobodyThere(t *testing.T) {
	c := New(filepath.Join(t.TempDir(), "s"))
	if _, err := c.Split(t.Context(), "t", "v"); c.Kind(err) != driver.Unreachable {
		t.Errorf("Split: %v", err)
	}
	if _, err := c.Open(t.Context(), "s"); c.Kind(err) != driver.Unreachable {
		t.Errorf("Open: %v", err)
	}
}

func TestCancelledMidway(t *testing.T) {
	asked := make(chan struct{}, 1)
	release := make(chan struct{})
	c := answering(t, func(net.Conn) { asked <- struct{}{}; <-release })
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	_, err := c.Split(ctx, "t", "v")
	if c.Kind(err) != driver.OutcomeUnknown || !errors.Is(err, context.Canceled) {
		t.Errorf("Split: %v", err)
	}
	close(release)
	cancel()
	if _, err = c.Split(ctx, "t", "v"); c.Kind(err) != driver.Unreachable {
		t.Errorf("Split that was never asked: %v", err)
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Nanosecond)
	defer stop()
	<-ctx.Done()
	if _, err = c.Open(ctx, "v"); err == nil {
		t.Error("Open after its time")
	}
}

func TestFaults(t *testing.T) {
	body := `{"error":"volume \"db\" is in use","kind":"busy"}`
	c := answering(t, say("HTTP/1.1 409 Conflict\r\nContent-Length: 49\r\n\r\n"+body))
	for what, err := range map[string]error{
		"Delete": c.Delete(t.Context(), "s"), "Open": two(c.Open(t.Context(), "s")),
	} {
		if c.Kind(err) != driver.Busy || err.Error() != `volume "db" is in use` {
			t.Errorf("%s: %v, kind %v", what, err, c.Kind(err))
		}
	}
	c = answering(t, say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: cleave-descriptor\r\nCleave-Size: 1\r\n\r\n"))
	if _, err := c.Open(t.Context(), "s"); err == nil || !strings.Contains(err.Error(), "lacks the descriptor") {
		t.Errorf("an answer without a descriptor: %v", err)
	}
}

func two[T any](_ T, err error) error { return err }
