package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// call opens a JSON control socket of QEMU (QMP or the guest agent's), runs one
// command and closes it again. Both protocols are one JSON object a line; qmp
// says whether to go through QMP's greeting first.
func call(ctx context.Context, socket string, qmp bool, command string, args any, result any) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, 1<<20)
	if qmp {
		if err := exchange(conn, lines, "qmp_capabilities", nil, nil); err != nil {
			return err
		}
	}
	return exchange(conn, lines, command, args, result)
}

func exchange(conn net.Conn, lines *bufio.Scanner, command string, args, result any) error {
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	b, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if _, err := conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	for lines.Scan() {
		var answer struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if json.Unmarshal(lines.Bytes(), &answer) != nil {
			continue
		}
		switch {
		case answer.Error != nil:
			return fmt.Errorf("%s: %s", command, answer.Error.Desc)
		case answer.Return == nil: // QMP's greeting, or an event
			continue
		case result == nil:
			return nil
		}
		if err := json.Unmarshal(answer.Return, result); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		return nil
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return fmt.Errorf("%s: connection closed", command)
}
