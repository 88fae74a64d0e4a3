package agent_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/orchestrator/guest/requester"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu/agent"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu/qemutest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cat answers guest-exec as a guest whose every program prints its input.
func cat(fault func(c qemutest.Command) (qemutest.Answer, bool)) qemutest.Rule {
	var mu sync.Mutex
	var input string
	polls := 0
	return func(c qemutest.Command) qemutest.Answer {
		mu.Lock()
		defer mu.Unlock()
		if fault != nil {
			if a, ok := fault(c); ok {
				return a
			}
		}
		switch c.Execute {
		case "guest-exec":
			var a struct {
				Input string `json:"input-data"`
			}
			json.Unmarshal(c.Arguments, &a)
			input, polls = a.Input, 0
			return qemutest.Answer{Return: map[string]int{"pid": 7}}
		case "guest-exec-status":
			if polls++; polls < 3 {
				return qemutest.Answer{Return: map[string]any{"exited": false}}
			}
			return qemutest.Answer{Return: map[string]any{"exited": true, "exitcode": 3, "out-data": input}}
		}
		return qemutest.Answer{}
	}
}

func TestRun(t *testing.T) {
	c := agent.New(qemutest.Agent(t, cat(nil)))
	r, err := c.Run(t.Context(), []string{"/bin/cat", "-"}, []byte("some text"))
	if err != nil || r.Status != 3 || string(r.Stdout) != "some text" {
		t.Fatalf("%+v, %v", r, err)
	}
}

// What was said to another client before does not become our answer.
func TestStaleAnswers(t *testing.T) {
	c := agent.New(qemutest.Agent(t, func(c qemutest.Command) qemutest.Answer {
		if c.Execute == "guest-sync-delimited" {
			return qemutest.Answer{Before: `{"return": {"version": "stale"}}` + "\n\xff" + `{"return": 12345}` + "\n"}
		}
		return qemutest.Answer{Return: map[string]any{"version": "7.2.0\x1b[31m"}}
	}))
	i, err := c.Info(t.Context())
	if err != nil || i.Version != "7.2.0 [31m" {
		t.Fatalf("%+v, %v", i, err)
	}
}

func TestErrors(t *testing.T) {
	if err := agent.New(filepath.Join(t.TempDir(), "none")).Ping(t.Context()); !errors.Is(err, agent.ErrAbsent) {
		t.Errorf("no socket: %v", err)
	}
	disabled := agent.New(qemutest.Agent(t, func(c qemutest.Command) qemutest.Answer {
		if c.Execute == "guest-exec" {
			return qemutest.Answer{Error: "The command guest-exec has been disabled for this instance", Class: "CommandNotFound"}
		}
		return qemutest.Answer{}
	}))
	if _, err := disabled.Run(t.Context(), []string{"x"}, nil); !errors.Is(err, requester.ErrRefused) {
		t.Errorf("disabled: %v", err)
	}
	restarted := agent.New(qemutest.Agent(t, cat(func(c qemutest.Command) (qemutest.Answer, bool) {
		return qemutest.Answer{Error: "PID 7 does not exist"}, c.Execute == "guest-exec-status"
	})))
	if _, err := restarted.Run(t.Context(), []string{"x"}, nil); err == nil || errors.Is(err, requester.ErrRefused) {
		t.Errorf("restarted: %v", err)
	}
	silent := agent.New(qemutest.Agent(t, func(qemutest.Command) qemutest.Answer { return qemutest.Answer{Silent: true} }))
	short, cancel := context.WithTimeoutCause(t.Context(), 30*time.Millisecond, agent.ErrSilent)
	defer cancel()
	if err := silent.Ping(short); !errors.Is(err, agent.ErrSilent) {
		t.Errorf("silent: %v", err)
	}
}

// After an agent that fell silent the next exchange begins anew.
func TestRecovers(t *testing.T) {
	silent := true
	var mu sync.Mutex
	c := agent.New(qemutest.Agent(t, func(c qemutest.Command) qemutest.Answer {
		mu.Lock()
		defer mu.Unlock()
		return qemutest.Answer{Silent: silent && c.Execute == "guest-ping"}
	}))
	short, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := c.Ping(short); err == nil {
		t.Fatal("silent, and no error")
	}
	mu.Lock()
	silent = false
	mu.Unlock()
	if err := c.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestManyAtOnce(t *testing.T) {
	c := agent.New(qemutest.Agent(t, func(c qemutest.Command) qemutest.Answer {
		switch c.Execute {
		case "guest-exec":
			var a struct{ Arg []string }
			json.Unmarshal(c.Arguments, &a)
			return qemutest.Answer{Return: map[string]int{"pid": int(a.Arg[0][0])}}
		case "guest-exec-status":
			var a struct{ PID int }
			json.Unmarshal(c.Arguments, &a)
			return qemutest.Answer{Return: map[string]any{"exited": true, "out-data": base64.StdEncoding.EncodeToString([]byte{byte(a.PID)})}}
		}
		return qemutest.Answer{}
	}))
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			arg := string(rune('a' + i))
			if r, err := c.Run(t.Context(), []string{"x", arg}, nil); err != nil || string(r.Stdout) != arg {
				t.Errorf("%q: %q, %v", arg, r.Stdout, err)
			}
		})
	}
	wg.Wait()
}

// Whatever a guest says ends in an error or a value.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"return": {"version": "7", "supported_commands": [{"name": "a"}]}}` + "\n"))
	f.Add([]byte(`{"error": {"class": "x"}}` + "\n"))
	f.Add([]byte("\xff\xff\n"))
	f.Add([]byte(strings.Repeat("[", 100000)))
	f.Add(bytes.Repeat([]byte("\n"), 10))
	f.Fuzz(func(t *testing.T, answer []byte) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Skip(err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			nc, err := l.Accept()
			if err != nil {
				return
			}
			defer nc.Close()
			b := make([]byte, 4096)
			n, _ := nc.Read(b)
			var c qemutest.Command
			json.Unmarshal(bytes.TrimLeft(b[:n], "\xff"), &c)
			var id struct{ ID json.RawMessage }
			json.Unmarshal(c.Arguments, &id)
			nc.Write([]byte("\xff{\"return\": " + string(id.ID) + "}\n"))
			nc.Read(b)
			nc.Write(answer)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		agent.New(path).Info(ctx)
		cancel()
		l.Close()
		<-ended
	})
}
