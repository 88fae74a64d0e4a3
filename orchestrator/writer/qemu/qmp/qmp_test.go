package qmp_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/orchestrator/writer/qemu/qemutest"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu/qmp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDo(t *testing.T) {
	var events []string
	path := qemutest.QMP(t, func(c qemutest.Command) qemutest.Answer {
		switch c.Execute {
		case "query-status":
			return qemutest.Answer{
				Before: `{"event":"STOP","data":{},"timestamp":{}}` + "\r\n" + `{"return":{"status":"stale"},"id":99}` + "\n",
				Return: qmp.Status{Status: "running", Running: true},
			}
		case "stop":
			return qemutest.Answer{Error: "no", Class: "CommandNotFound"}
		}
		return qemutest.Answer{}
	})
	c, err := qmp.Dial(t.Context(), path, func(e qmp.Event) { events = append(events, e.Name) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := c.QueryStatus(t.Context())
	if err != nil || s.Status != "running" || !s.Running {
		t.Fatalf("%+v, %v", s, err)
	}
	var refused *qmp.Error
	if err := c.Stop(t.Context()); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
		t.Fatalf("stop: %v", err)
	}
	if err := c.Cont(t.Context()); err != nil {
		t.Fatalf("cont after a refusal: %v", err)
	}
	if len(events) != 1 || events[0] != "STOP" {
		t.Fatalf("events %q", events)
	}
}

func TestReplyThatComesTooLateIsNotTakenForTheNext(t *testing.T) {
	path := qemutest.QMP(t, func(c qemutest.Command) qemutest.Answer {
		if c.Execute == "slow" {
			return qemutest.Answer{Silent: true}
		}
		return qemutest.Answer{Before: `{"return":"late","id":2}` + "\n", Return: "prompt"} // 1 was qmp_capabilities
	})
	c, err := qmp.Dial(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Do(short, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("slow: %v", err)
	}
	var got string
	if err := c.Do(t.Context(), "next", nil, &got); err != nil || got != "prompt" {
		t.Fatalf("next: %q, %v", got, err)
	}
}

func TestDialErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := qmp.Dial(t.Context(), filepath.Join(dir, "none"), nil); !errors.Is(err, qmp.ErrAbsent) {
		t.Errorf("no socket: %v", err)
	}
	path := qemutest.QMP(t, func(qemutest.Command) qemutest.Answer { return qemutest.Answer{} })
	first, err := qmp.Dial(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	short, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, qmp.ErrBusy)
	defer cancel()
	if _, err := qmp.Dial(short, path, nil); !errors.Is(err, qmp.ErrBusy) || !strings.Contains(err.Error(), path) {
		t.Errorf("second client: %v", err)
	}
}

// Whatever QEMU says ends in an error or a value, never in a panic, a hang or
// memory without bound.
func FuzzReply(f *testing.F) {
	f.Add([]byte(`{"return":{"status":"paused","running":false},"id":2}` + "\n"))
	f.Add([]byte(`{"error":{"class":"x","desc":"y"},"id":2}` + "\r\n"))
	f.Add([]byte(`{"event":"STOP"}` + "\n" + `{"return":[],"id":2}` + "\n"))
	f.Add([]byte("[[[[[[\n"))
	f.Add(bytes.Repeat([]byte("x"), 200<<10))
	f.Fuzz(func(t *testing.T, reply []byte) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Skip(err)
		}
		defer l.Close()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			nc, err := l.Accept()
			if err != nil {
				return
			}
			defer nc.Close()
			b := make([]byte, 512)
			nc.Write([]byte(`{"QMP":{}}` + "\n"))
			nc.Read(b)
			nc.Write([]byte(`{"return":{},"id":1}` + "\n"))
			nc.Read(b)
			nc.Write(reply)
		}()
		c, err := qmp.Dial(t.Context(), path, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		c.QueryStatus(ctx)
		cancel()
		c.Close()
		<-ended
	})
}
