// Package ext is where Traefik's configuration can be extended. Traefik has it as a module of its own, which is served by
// no proxy since it has no version; as there, nothing is extended.
package ext

// HTTP extends dynamic.HTTPConfiguration.
type HTTP struct{}

// Router extends dynamic.Router.
type Router struct{}
