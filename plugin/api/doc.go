// Package api carries an orchestrator.Service over HTTP and JSON: Handler and
// Serve on one side, Client on the other. A Client is itself a Service, so a
// door does not notice on which side of the socket it stands: errors come back
// with the same identities (errors.Is), and cancelling a call cancels it over
// there.
//
// The server listens on a unix socket that only its own user (and root) may
// use. Paths begin with the version of the interface; fields are added within
// a version, never renamed or removed.
//
//	GET  /v1/version
//	GET  /v1/vms
//	GET  /v1/verdicts?vm=NAME         without vm: all
//	POST /v1/sets                     a Request; answers the Set
//	GET  /v1/sets
//	GET  /v1/sets/{id}
//	GET  /v1/sets/{id}/events         JSON lines until the set is ready or final
//	POST /v1/sets/{id}/expose         an ExposeRequest
//	POST /v1/sets/{id}/unexpose
//	POST /v1/sets/{id}/release
//	POST /v1/sets/{id}/recover        a RecoverRequest
//	POST /v1/sets/{id}/revert
//	POST /v1/sets/{id}/break
//	GET  /v1/sets/{id}/diff?from=SET  without from: from the set to now
//
// Anything but success is {"error": {"code", "message", "hint", "kind"}}, with
// the set beside it where the Service returned one.
package api
