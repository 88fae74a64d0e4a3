package mainjob

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
)

// relayCommand has the test program stand between the control plane and the
// program that speaks for an array:
//
//	relay SOCKET PROGRAM ARGUMENT…
//
// It says on the socket what is about to pass, and passes it on when that is
// closed: "before CALL" for a request, "after CALL" for a reply.
const relayCommand = "relay"

func relay(args []string) error {
	socket, program := args[0], exec.Command(args[1], args[2:]...)
	program.Stderr = os.Stderr
	in, err := program.StdinPipe()
	if err != nil {
		return err
	}
	out, err := program.StdoutPipe()
	if err != nil {
		return err
	}
	if err := program.Start(); err != nil {
		return err
	}
	var calls sync.Map // by the identifiers of requests
	go func() {
		defer in.Close()
		each(os.Stdin, in, func(m message) {
			calls.Store(m.ID, m.Call)
			announce(socket, "before "+m.Call)
		})
	}()
	each(out, os.Stdout, func(m message) {
		call, _ := calls.LoadAndDelete(m.ID)
		announce(socket, fmt.Sprint("after ", call))
	})
	return program.Wait()
}

// message is what a request and a reply have.
type message struct {
	ID   string `json:"id"`
	Call string `json:"call"`
}

// each passes lines on after see has seen them.
func each(from io.Reader, to io.Writer, see func(message)) {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var m message
		if json.Unmarshal(lines.Bytes(), &m) == nil {
			see(m)
		}
		if _, err := to.Write(append(lines.Bytes(), '\n')); err != nil {
			return
		}
	}
}

// announce returns when whoever listens has heard it, or nobody does.
func announce(socket, what string) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, what); err == nil {
		_, _ = c.Read(make([]byte, 1)) // its end is the answer
	}
}
