// Package qemutest holds the control sockets of a QEMU that does not exist: a
// QMP monitor and a guest agent, each one function that answers a command, with
// faults in the answer. They are for tests only.
package qemutest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Command is what a client sent.
type Command struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id"`
}

// Answer is what becomes of a command. The zero value is an empty success.
type Answer struct {
	Return any    // the value returned; nil is {}
	Class  string // with Error: the error's class, default GenericError
	Error  string // refuses the command
	Before string // raw bytes sent before the answer (events, rubbish)
	Raw    string // sent instead of the answer
	Silent bool   // no answer
	Hangup bool   // the connection is closed instead
}

// Rule answers commands. It may be called from several goroutines if the test
// has several clients in a row.
type Rule func(c Command) Answer

// QMP serves a monitor on a socket of its own until the test ends, one client
// at a time as QEMU does, and returns the socket's path.
func QMP(t testing.TB, rule Rule) string {
	t.Helper()
	return serve(t, func(nc net.Conn) {
		fmt.Fprint(nc, `{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": "test"}, "capabilities": ["oob"]}}`+"\r\n")
		r := bufio.NewReader(nc)
		for {
			var c Command
			line, err := r.ReadBytes('\n')
			if err != nil || json.Unmarshal(line, &c) != nil {
				return
			}
			a := Answer{}
			if c.Execute != "qmp_capabilities" {
				a = rule(c)
			}
			if !a.write(nc, c.ID) {
				return
			}
		}
	})
}

// Agent serves a guest agent in the same way. It answers guest-sync-delimited
// itself, and asks the rule first: a Silent or Raw answer wins.
func Agent(t testing.TB, rule Rule) string {
	t.Helper()
	return serve(t, func(nc net.Conn) {
		r := bufio.NewReader(nc)
		for {
			var c Command
			line, err := r.ReadBytes('\n')
			if err != nil {
				return
			}
			if json.Unmarshal(bytes.TrimLeft(line, "\xff"), &c) != nil {
				fmt.Fprint(nc, `{"error": {"class": "GenericError", "desc": "JSON parse error"}}`+"\n")
				continue
			}
			a := rule(c)
			if c.Execute == "guest-sync-delimited" && !a.Silent && !a.Hangup && a.Raw == "" {
				var arg struct{ ID int64 }
				if json.Unmarshal(c.Arguments, &arg) != nil {
					return // a client that does not know its own agent
				}
				a.Before += "\xff"
				a.Return = arg.ID
			}
			if !a.write(nc, nil) {
				return
			}
		}
	})
}

func (a Answer) write(nc net.Conn, id json.RawMessage) bool {
	if a.Hangup {
		return false
	}
	fmt.Fprint(nc, a.Before)
	if a.Silent {
		return true
	}
	if a.Raw != "" {
		fmt.Fprint(nc, a.Raw)
		return true
	}
	m := map[string]any{}
	if id != nil {
		m["id"] = id
	}
	switch {
	case a.Error != "":
		if a.Class == "" {
			a.Class = "GenericError"
		}
		m["error"] = map[string]string{"class": a.Class, "desc": a.Error}
	case a.Return != nil:
		m["return"] = a.Return
	default:
		m["return"] = struct{}{}
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	_, err = nc.Write(append(b, '\n'))
	return err == nil
}

// serve accepts one client after the other.
func serve(t testing.TB, client func(net.Conn)) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "q") // t.TempDir may be too long for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var current net.Conn
	ended, closed := make(chan struct{}), false
	go func() {
		defer close(ended)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			current = nc
			if closed {
				nc.Close()
			}
			mu.Unlock()
			client(nc)
			nc.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		closed = true
		if current != nil {
			current.Close()
		}
		mu.Unlock()
		<-ended
		os.RemoveAll(dir)
	})
	return path
}
