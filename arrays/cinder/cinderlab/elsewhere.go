package cinderlab

import (
	"encoding/json"
	"net"
	"sync"
	"testing"
)

// Elsewhere performs a command on the machine that has a Cinder's storage. It may be
// called at once from several goroutines.
type Elsewhere func(args []string) (stdout, stderr string, status int)

// listen performs what is asked for on a socket, until the test ends.
func (there Elsewhere) listen(t testing.TB, path string) string {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			wg.Go(func() {
				defer conn.Close()
				var asked struct {
					Args []string `json:"args"`
				}
				if json.NewDecoder(conn).Decode(&asked) != nil || len(asked.Args) == 0 {
					return // Cinder has ended
				}
				var a struct {
					Stdout string `json:"stdout"`
					Stderr string `json:"stderr"`
					Status int    `json:"status"`
				}
				a.Stdout, a.Stderr, a.Status = there(asked.Args)
				_ = json.NewEncoder(conn).Encode(a)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return path
}
